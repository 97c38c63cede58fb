"""What a rollout records, and what remains of it when rows are taken."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.backends.scenes import ScenePolicy, Scenes
from grpaint.core import Cps, DanceSde, Ddim, FlowPath, FlowSde, Lcm, Ode, Path, Policy, Prompt, Sampler, VpPath, noise
from grpaint.core.runtime import Runtime
from grpaint.rollout import Closed, Funnel, Plan, Random, Reference, Rollout, Shared, Whole, act, roll

PROMPTS = [Prompt(text, reference=torch.full((3, 4, 4), 0.7)) for text in ("one", "two", "three", "four")]
PARTS = ("x", "x_next", "mean", "logp")


def model(path: Path | None = None) -> GaussianPolicy:
    return GaussianModel(path=path or FlowPath()).load(Runtime())


def scenes(**settings: object) -> ScenePolicy:
    """The built-in network, its zero-initialised layers moved off zero."""
    policy = Scenes(start="random", **settings).load(Runtime())  # type: ignore[arg-type]
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(noise(("perturb",), [number], parameter.shape)[0], alpha=0.03)
    return policy


def rolled(policy: Policy, given: Sequence[Prompt] = PROMPTS, **settings: object) -> Rollout:
    plan = Plan(**{"steps": 6, "sampler": FlowSde()} | settings)  # type: ignore[arg-type]
    return roll(policy, given, 3, plan, iteration=4, seed=9, score=lambda images, *_: images.flatten(1).mean(1))


def mixed() -> Rollout:
    """A rollout whose steps hold different rows."""
    return rolled(model(), start=Reference(strength=0.5, share=0.5))


def same(ours: Rollout, theirs: Rollout) -> None:
    for name in ("group", "x0", "references"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert torch.equal(ours.cond.embedding, theirs.cond.embedding)
    for one, other in zip(ours.transitions, theirs.transitions, strict=True):
        assert (one.step, one.here, one.there, one.std) == (other.step, other.here, other.there, other.std)
        assert torch.equal(one.rows, other.rows)
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in PARTS)


@pytest.mark.parametrize(
    ("path", "sampler"),
    [
        (FlowPath(3), FlowSde()),
        (FlowPath(3), DanceSde()),
        (FlowPath(), Cps()),
        (VpPath(), Ddim()),
        (VpPath(), Cps()),
        (VpPath(), Lcm()),
    ],
    ids=str,
)
def test_a_recorded_action_is_the_one_taken_and_the_next_one_starts_where_it_ended(
    path: Path, sampler: Sampler
) -> None:
    policy = model(path)
    rollout = rolled(policy, sampler=sampler)
    assert [t.step for t in rollout.transitions] == list(range(5))
    for transition, (here, there) in zip(rollout.transitions, pairwise(path.grid(6)), strict=False):
        assert (transition.here, transition.there) == (here, there)
        assert transition.std == sampler(here, there)[1]
        z = policy.noise((9, 4, transition.step), transition.rows)
        assert torch.equal(transition.x_next, transition.mean + transition.std * z)
        spread = torch.distributions.Normal(transition.mean, transition.std)
        torch.testing.assert_close(transition.logp, spread.log_prob(transition.x_next).flatten(1).mean(1))
    for transition, after in pairwise(rollout.transitions):
        assert torch.equal(transition.x_next, after.x)
    last = rollout.transitions[-1]
    with torch.no_grad():
        end, _ = act(policy, Ode(), last.x_next, last.there, path.grid(6)[-1], rollout.cond)
    assert torch.equal(end.mean, rollout.x0)


def test_steps_outside_the_window_are_noise_free() -> None:
    policy = model()
    rollout = rolled(policy, window=Random(2, 2, 2))
    grid = policy.path.grid(6)
    x = policy.noise((9, 4, "start"), range(12))
    with torch.no_grad():
        for k in (0, 1):
            x = act(policy, Ode(), x, grid[k], grid[k + 1], rollout.cond)[0].mean
        assert torch.equal(x, rollout.transitions[0].x)
        x = rollout.transitions[-1].x_next
        for k in (4, 5):
            x = act(policy, Ode(), x, grid[k], grid[k + 1], rollout.cond)[0].mean
    assert torch.equal(x, rollout.x0)


def test_a_closed_rollout_is_the_ode_and_does_not_ask_for_its_sampler() -> None:
    policy = model()
    closed = rolled(policy, window=Closed(), sampler=FlowSde())
    assert closed.transitions == ()
    assert torch.equal(closed.x0, rolled(model(), window=Closed(), sampler=Ode()).x0)
    grid, x = policy.path.grid(6), policy.noise((9, 4, "start"), range(12))
    with torch.no_grad():
        for here, there in pairwise(grid):
            x = act(policy, Ode(), x, here, there, closed.cond)[0].mean
    assert torch.equal(x, closed.x0)


def test_a_rollout_is_a_function_of_seed_and_iteration_alone() -> None:
    plan = Plan(steps=6, sampler=FlowSde(), window=Random(2, 0, 4))
    first = roll(model(), PROMPTS, 3, plan, iteration=1, seed=2)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    same(roll(model(), PROMPTS, 3, plan, iteration=1, seed=2), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    for iteration, seed in ((2, 2), (1, 3)):
        other = roll(model(), PROMPTS, 3, plan, iteration=iteration, seed=seed)
        assert (other.x0 != first.x0).flatten(1).any(1).all()


def test_no_two_rows_or_steps_share_noise() -> None:
    rollout = rolled(model())
    drawn = torch.cat([(t.x_next - t.mean) / t.std for t in rollout.transitions]).flatten(1)
    correlation = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert correlation.abs().max() < 0.95


def test_a_rollout_keeps_its_numbers() -> None:
    rollout = rolled(model())
    assert (rollout.seed, rollout.iteration, rollout.sampler) == (9, 4, FlowSde())
    assert rollout.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(rollout.cond.embedding, model().encode(PROMPTS).embedding[rollout.group])
    assert not rollout.x0.requires_grad


def test_a_rollout_samples_with_the_weights_of_its_plan() -> None:
    policy = model()
    before = rolled(policy)
    policy.blend("behaviour", 0.0)
    with torch.no_grad():
        policy.net.shift.add_(1.0)
    for weights in ("behaviour", "reference", "average"):
        assert torch.equal(rolled(policy, weights=weights).x0, before.x0)
    assert (rolled(policy).x0 > before.x0).all()


@pytest.mark.parametrize("index", [[3], [0, 1, 2], [11, 0, 5, 7], list(range(12)), list(range(11, -1, -1))], ids=str)
def test_rows_are_taken_in_the_given_order_and_renumbered(index: list[int]) -> None:
    rollout = mixed()
    taken = rollout.rows(torch.tensor(index))
    assert torch.equal(taken.x0, rollout.x0[index])
    assert torch.equal(taken.group, rollout.group[index])
    assert torch.equal(taken.references, rollout.references[index])
    assert torch.equal(taken.cond.embedding, rollout.cond.embedding[index])
    ours = {transition.step: transition for transition in taken.transitions}
    for transition in rollout.transitions:
        there = transition.rows.tolist()
        rows = [place for place, row in enumerate(index) if row in there]
        if not rows:
            assert transition.step not in ours
            continue
        part = ours.pop(transition.step)
        assert part.rows.tolist() == rows
        where = [there.index(index[place]) for place in rows]
        for name in PARTS:
            assert torch.equal(getattr(part, name), getattr(transition, name)[where])
    assert not ours


def test_all_rows_in_their_order_are_the_rollout() -> None:
    rollout = mixed()
    same(rollout.rows(torch.arange(12)), rollout)


def test_rows_of_rows_are_rows() -> None:
    rollout = mixed()
    first, second = torch.tensor([7, 2, 9, 0, 4]), torch.tensor([3, 0, 2])
    same(rollout.rows(first).rows(second), rollout.rows(first[second]))


def test_previews_are_taken_with_their_rows() -> None:
    rollout = rolled(model(), prune=Funnel((2,), (2,)))
    index = torch.tensor([5, 0])
    assert torch.equal(rollout.rows(index).previews[2], rollout.previews[2][index])


def test_stored_latents_are_fp32() -> None:
    rollout = rolled(model())
    stored: list[Tensor] = [rollout.x0, *(getattr(t, name) for t in rollout.transitions for name in PARTS)]
    assert {tensor.dtype for tensor in stored} == {torch.float32}


@pytest.mark.parametrize(("parametrisation", "sampler"), [("velocity", FlowSde()), ("epsilon", Ddim())])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_how_a_batch_is_split_changes_nothing(parametrisation: str, sampler: Sampler, guidance: float) -> None:
    given = [Prompt("a red circle"), Prompt("two blue squares")]

    def at(batch: int) -> Rollout:
        policy = scenes(parametrisation=parametrisation, guidance=guidance, batch=batch)
        return rolled(policy, given, steps=4, sampler=sampler, window=Whole(), start=Shared())

    whole, split = at(512), at(4)
    # read from epsilon, the first x0 is a difference divided by alpha = 5e-5: fp32 rounding weighs 1e-3 there
    close = {"rtol": 1e-4, "atol": 1e-4 if parametrisation == "velocity" else 3e-3}
    torch.testing.assert_close(split.x0, whole.x0, **close)
    for ours, theirs in zip(split.transitions, whole.transitions, strict=True):
        for name in PARTS:
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **close)
