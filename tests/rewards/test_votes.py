"""Votes as a reward: the strengths that votes give, rows that nobody judged, and what a recipe may not combine."""

import math

import pytest
import torch

from grpaint.core import Prompt
from grpaint.core.errors import ConfigError, RewardError
from grpaint.core.policy import ExternalReward, PeopleReward
from grpaint.learn.advantage import GroupNorm, LeaveOneOut, PerReward, compute_advantage
from grpaint.learn.table import RewardSet
from grpaint.measures.intervals import preference_entries
from grpaint.parallel.world import World
from grpaint.recipe.config import open_recipe
from grpaint.rewards.votes import Votes, strengths
from grpaint.rollout.rollout import Rollout
from grpaint.run.shares import check_shares
from grpaint.storage.ballots import Ranking
from grpaint.storage.votes import VOTES_FILE, VoteFile
from tiny_runs import TINY
from voting import voting

PEOPLE = 'rewards={people={kind="votes"}}'


def rankings(*picks):
    return [Ranking(str(number), tuple(one)) for number, one in enumerate(picks)]


def test_one_choice_between_two_has_the_closed_form():
    better, worse = strengths(2, rankings([1]))[::-1]
    assert better == pytest.approx(-worse)
    assert better == pytest.approx(1 / (1 + math.exp(2 * better)), abs=1e-8)  # t = P(the other is chosen)


def test_strengths_are_where_the_gradient_of_the_posterior_is_zero():
    votes = rankings([2, 0, 3], [2, 3], [1], [])
    theta = torch.tensor(strengths(4, votes), dtype=torch.float64)
    gradient = -theta  # of the log prior
    for better, worse in [(2, 0), (2, 1), (2, 3), (0, 1), (0, 3), (3, 1), (2, 3), (2, 0), (2, 1), (3, 0), (3, 1),
                          (1, 0), (1, 2), (1, 3)]:  # fmt: skip
        surprise = (theta[worse] - theta[better]).sigmoid()
        gradient[better] += surprise
        gradient[worse] -= surprise
    assert gradient.abs().max() < 1e-7
    assert theta.sum().abs() < 1e-8
    assert theta.argmax() == 2


def test_a_contrary_voter_is_outvoted_and_votes_that_cancel_give_no_order():
    scores = strengths(4, rankings([3, 2, 1], [3, 2, 1], [0, 1, 2]))
    assert scores == sorted(scores)
    assert scores == pytest.approx([-score for score in scores[::-1]])  # two against one, whichever way it is read
    assert scores[3] < strengths(4, rankings([3, 2, 1], [3, 2, 1]))[3]
    assert strengths(2, rankings([0], [1])) == pytest.approx([0, 0], abs=1e-9)


def _rollout(groups: list[int]) -> Rollout:
    group, count = torch.tensor(groups), len(groups)
    prompts = [Prompt(str(number)) for number in range(max(groups) + 1)]
    return Rollout(prompts, group, None, None, (), torch.zeros(count, 1), {}, torch.zeros(count).bool(), 0, 0)


class _Half:
    """Scores the first two groups of three; the last has no answer."""

    partial = True

    def __call__(self, images, prompts):
        return torch.tensor([1.0, -1.0, 3.0, 1.0, torch.nan, torch.nan])


def _ones(images, prompts):
    return torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 2.0])


@pytest.mark.parametrize("advantage", [PerReward(), GroupNorm(), GroupNorm(std="batch"), LeaveOneOut()], ids=repr)
def test_a_group_without_an_answer_has_no_advantage_and_changes_no_other(advantage):
    images, prompts = torch.zeros(6, 3, 2, 2), [Prompt(text) for text in "aabbcc"]
    table = RewardSet({"people": _Half()}, {"people": 1.0}).score(images, prompts)
    assert table.applies["people"].tolist() == [True] * 4 + [False] * 2
    values = compute_advantage(advantage, table, _rollout([0, 0, 1, 1, 2, 2]))
    assert values[4:].tolist() == [0, 0]
    answered = table.rows(torch.arange(4))
    assert values[:4].tolist() == compute_advantage(advantage, answered, _rollout([0, 0, 1, 1])).tolist()
    assert (values[:4] != 0).all()


def test_another_reward_still_moves_a_group_that_nobody_judged():
    images, prompts = torch.zeros(6, 3, 2, 2), [Prompt(text) for text in "aabbcc"]
    table = RewardSet({"people": _Half(), "ones": _ones}, {}).score(images, prompts)
    values = compute_advantage(PerReward(), table, _rollout([0, 0, 1, 1, 2, 2]))
    assert values[4:].tolist() == pytest.approx([-1, 1], abs=1e-4)


def test_only_a_partial_reward_may_leave_images_out():
    def half(images, prompts):
        return torch.tensor([1.0, torch.nan])

    with pytest.raises(RewardError, match="returned nan"):
        RewardSet({"half": half}, {}).score(torch.zeros(2, 3, 2, 2), [Prompt("a")] * 2)


@pytest.fixture
def people(tmp_path):
    """A reward of two votes that works in a folder."""
    reward = Votes(votes=2, wait_s=60)
    reward.join_run(tmp_path, lambda: 0)
    reward.start()
    yield reward
    reward.stop()


def test_images_are_ranked_by_those_who_vote(people, tmp_path):
    images = torch.zeros(8, 3, 4, 4)
    images[:, 0] = torch.tensor([0.1, 0.4, 0.2, 0.3, 0.9, 0.8, 0.7, 0.6]).view(8, 1, 1)
    first, second = Prompt("one"), Prompt("one")  # two groups of one caption are two questions
    with voting(tmp_path / VOTES_FILE, ["Ann", "Ben"]) as cast:
        scores = people(images, [first] * 4 + [second] * 4)
    assert scores[:4].argsort(descending=True).tolist() == [1, 3, 2, 0]
    assert scores[4:].argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert scores[:4].sort().values.tolist() == pytest.approx(scores[4:].sort().values.tolist())
    assert len(cast) == len(set(cast)) == 4
    assert people.spent() == {"groups": 2, "votes": 4}
    assert people(images, [first] * 4 + [second] * 4).tolist() == scores.tolist()  # answered: nobody is asked again
    with VoteFile(tmp_path / VOTES_FILE) as votes:
        assert votes.standing() == (0, 4)


def test_time_is_over_and_groups_without_a_choice_have_no_score(tmp_path):
    reward = Votes(votes=2, wait_s=0.6)
    reward.join_run(tmp_path, lambda: 0)
    reward.start()
    images, prompts = torch.rand(6, 3, 4, 4), [Prompt("a")] * 2
    prompts += [Prompt("b")] * 2
    prompts = [prompts[0]] * 2 + [prompts[2]] * 2 + [Prompt("c")] * 2
    with VoteFile(tmp_path / VOTES_FILE) as votes:
        ann = votes.enrol(["Ann"])[0].number
        votes.ask([reward._question(images[:2], "a"), reward._question(images[2:4], "b")])
        votes.vote(ann, 1, [1])
        votes.vote(ann, 2, [])  # no difference
        scores = reward(images, prompts)
        assert votes.standing() == (0, 2)
    assert scores[1] > scores[0]
    assert scores[2:].isnan().all()
    reward.stop()


def test_the_share_of_people_who_prefer_the_second_picture(tmp_path):
    reward = Votes(votes=3, wait_s=0.6)
    reward.join_run(tmp_path, lambda: 0)
    reward.start()
    before, after = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    prompts = [Prompt(text) for text in "abc"]
    with VoteFile(tmp_path / VOTES_FILE) as votes:
        voters = votes.enrol(["Ann", "Ben", "Cem"])
        votes.ask(
            [reward._question(torch.stack(pair), p.text) for *pair, p in zip(before, after, prompts, strict=True)]
        )
        for number, every in ((1, [[1], [0], [1]]), (2, [[], [0]])):
            for voter, picks in zip(voters, every, strict=False):
                votes.vote(voter.number, number, picks)
    assert reward.prefer(before, after, prompts)[:2].tolist() == pytest.approx([2 / 3, 1 / 4])
    assert reward.prefer(before, after, prompts)[2].isnan()
    assert reward.spent() == {}
    assert preference_entries("p", torch.tensor([torch.nan])) == {}
    partly = preference_entries("p", torch.tensor([0.5, torch.nan, 1.0]))
    assert (partly["p"], "p_by_prompt" in partly) == (0.75, False)
    reward.stop()


def test_outside_a_run_nobody_is_asked():
    with pytest.raises(RewardError, match="only training is one"):
        Votes()(torch.rand(2, 3, 4, 4), [Prompt("a")] * 2)


def test_a_damaged_file_stops_the_run_in_a_line(tmp_path):
    (tmp_path / VOTES_FILE).write_bytes(b"x" * 5000)
    reward = Votes()
    reward.join_run(tmp_path, lambda: 0)
    with pytest.raises(RewardError, match="damaged") as refusal:
        reward.start()
    assert "\n" not in str(refusal.value)


def test_a_single_image_cannot_be_compared(people):
    with pytest.raises(RewardError, match="one has a single image"):
        people(torch.rand(3, 3, 4, 4), [Prompt("a"), Prompt("b"), Prompt("c")])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["advantage.kind=batch"], 'may leave groups without a score.*"per-reward"'),
        (["plan.previews=true"], "looks at finished images alone"),
        (['rewards={one={kind="votes"},two={kind="votes"}}'], "one reward of a run asks people"),
        (['rewards={people={kind="votes",votes=0}}'], "votes must be at least 1"),
        (['rewards={people={kind="votes",choices=0}}'], "choices must be at least 1"),
        (['rewards={people={kind="votes",wait_s=0}}'], "wait_s must lie in"),
    ],
)
def test_what_does_not_go_together_is_refused(sets, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        open_recipe("flow-grpo-fast", "train", [*TINY, PEOPLE, *sets])


def test_one_process_of_many_asks():
    world = World()
    world.size = 2
    for sets, message in (
        ([PEOPLE], r'rewards\.people\.place: one process .* set it to "node"'),
        (['rewards={people={kind="votes",place="node"}}'], r"wait_s = 86400: .*processes\.limit_s = 1800"),
    ):
        recipe, _ = open_recipe("flow-grpo-fast", "train", [*TINY, *sets])
        with pytest.raises(ConfigError, match=message):
            check_shares(recipe, world)
    recipe, _ = open_recipe(
        "flow-grpo-fast", "train", [*TINY, 'rewards={people={kind="votes",place="node",wait_s=600}}']
    )
    check_shares(recipe, world)
    world.nodes = 2
    with pytest.raises(ConfigError, match="one machine"):
        check_shares(recipe, world)
    assert isinstance(recipe.rewards["people"].reward, PeopleReward)
    assert isinstance(recipe.rewards["people"].reward, ExternalReward)
