"""The embedded world's rewards, alone and through a RewardSet."""

import pytest
import torch

from grpaint.core import Prompt, RewardError
from grpaint.learn import PerReward, RewardSet
from grpaint.rewards.scenes import SceneChecker, SceneCleanliness, SceneDistance, SceneScorer
from grpaint.rollout import Rollout
from grpaint.scenes.checker import background
from grpaint.scenes.scorer import shipped_scorer
from grpaint.scenes.world import SceneData

DATA = SceneData(references=True)
PROMPTS = DATA.prompts(24, 0, 0)
PICTURES = torch.stack([prompt.reference for prompt in PROMPTS])
_DRAW = torch.Generator().manual_seed(0)
GRAIN = 0.1 * torch.rand(24, 1, 1, 1, generator=_DRAW) * torch.randn(PICTURES.shape, generator=_DRAW)


def test_the_scorer_prefers_the_right_picture() -> None:
    scorer = SceneScorer()
    torch.testing.assert_close(scorer(PICTURES, PROMPTS), shipped_scorer().score(PICTURES, [p.text for p in PROMPTS]))
    assert (scorer(PICTURES, PROMPTS) > scorer(PICTURES.roll(1, 0), PROMPTS)).float().mean() > 0.9


def test_agreement_is_capped_at_enough() -> None:
    cosine, capped = SceneScorer()(PICTURES, PROMPTS), SceneScorer(enough=0.5)(PICTURES, PROMPTS)
    assert torch.equal(capped, cosine.clamp(max=0.5))
    with pytest.raises(ValueError, match="enough"):
        SceneScorer(enough=1.5)


def test_the_distance_is_greatest_at_the_reference_itself() -> None:
    distance = SceneDistance()
    assert distance.needs_reference
    assert distance(PICTURES, PROMPTS).abs().max() < 1e-6
    assert (distance(PICTURES + GRAIN, PROMPTS) < 0).all()


def test_a_prompt_without_a_reference_is_named() -> None:
    with pytest.raises(RewardError, match='reward like raised ValueError: the prompt "a red circle" has no reference'):
        RewardSet({"like": SceneDistance()}, {"like": 1.0}).score(PICTURES[:2], [PROMPTS[0], Prompt("a red circle")])


def test_cleanliness_is_capped_at_enough() -> None:
    images = PICTURES + GRAIN
    grain, reward = background(images), SceneCleanliness(enough=0.03)(images, PROMPTS)
    assert (grain < 0.03).any()
    assert (grain > 0.03).any()
    torch.testing.assert_close(reward, torch.where(grain < 0.03, -0.03, -grain))
    torch.testing.assert_close(SceneCleanliness()(images, PROMPTS), -grain)
    with pytest.raises(ValueError, match="enough"):
        SceneCleanliness(enough=-1)


def test_a_reference_reward_counts_where_rows_began_at_one_and_the_others_make_up_for_it() -> None:
    weights = {"scorer": 0.6, "distance": 0.2, "clean": 0.2}
    rewards = RewardSet({"scorer": SceneScorer(), "distance": SceneDistance(), "clean": SceneCleanliness()}, weights)
    owner = torch.arange(4).repeat_interleave(6)
    prompts = [PROMPTS[i] for i in owner]
    began = owner < 2
    table = rewards.score(PICTURES[owner] + GRAIN, prompts, began)
    assert table.applies.keys() == {"distance"}
    none = torch.zeros(24)
    shares = PerReward().shares(table, Rollout(PROMPTS, owner, none, None, (), none, {}, began, 0, 0))
    assert shares["distance"][began].ne(0).all()
    assert shares["distance"][~began].eq(0).all()
    for name, low, high in (("scorer", 0.6, 0.75), ("distance", 0.2, 0.0), ("clean", 0.2, 0.25)):
        for group in range(4):  # a normalised reward has unit spread, so a share's spread is its weight
            spread = shares[name][owner == group].std(correction=0).item()
            assert spread == pytest.approx(low if group < 2 else high, abs=1e-3)


def test_the_checker_pays_for_both_scores() -> None:
    assert torch.equal(SceneChecker()(PICTURES, PROMPTS), torch.ones(24))


@pytest.mark.parametrize("reward", [SceneChecker(), SceneScorer(), SceneDistance(), SceneCleanliness()], ids=str)
def test_pictures_of_another_size_are_refused(reward: SceneChecker) -> None:
    larger = PICTURES.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with pytest.raises(ValueError, match="scenes are 32 x 32 pixels, these are 64 x 64"):
        reward(larger, PROMPTS)
