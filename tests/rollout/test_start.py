"""Where samples begin."""

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.backends.scenes import Scenes
from grpaint.core import Cps, Ddim, FlowPath, Path, Prompt, VpPath
from grpaint.core.runtime import Runtime
from grpaint.rollout import Funnel, Independent, Plan, Prefix, Reference, Shared, Whole, roll
from grpaint.rollout.start import Start, StartLatents, StartRows

VP = VpPath(betas="cosine", spacing="trailing", final="one")


def model(path: Path | None = None) -> GaussianPolicy:
    return GaussianModel(path=path or FlowPath()).load(Runtime())


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"prompt {i}", reference=torch.full((3, 4, 4), (i + 1) / (count + 1))) for i in range(count)]


def members(count: int, size: int) -> Tensor:
    return torch.arange(count).repeat_interleave(size)


def begin(start: Start, policy: GaussianPolicy, group: Tensor, key: tuple[int, int] = (0, 0)) -> StartLatents:
    numbers = group.unique() if start.shared else torch.arange(len(group))
    return start.begin(policy, prompts(int(group.max()) + 1), StartRows(group, numbers), policy.path.grid(10), key)


def test_independent_rows_have_noise_of_their_own() -> None:
    policy = model()
    x, entry, references = begin(Independent(), policy, members(3, 4))
    assert torch.equal(x, policy.noise((0, 0, "start"), range(12)))
    assert len(x.flatten(1).unique(dim=0)) == 12
    assert entry.tolist() == [0] * 12
    assert not references.any()


def test_shared_rows_are_one_a_prompt() -> None:
    policy = model()
    x, entry, references = begin(Shared(), policy, torch.arange(3))
    assert len(x.flatten(1).unique(dim=0)) == 3
    assert entry.tolist() == [0] * 3
    assert not references.any()


@pytest.mark.parametrize("start", [Independent(), Shared(), Reference()], ids=str)
def test_start_noise_belongs_to_seed_and_iteration(start: Start) -> None:
    policy, group = model(), members(4, 1)
    first = begin(start, policy, group, (0, 0)).x
    assert torch.equal(begin(start, policy, group, (0, 0)).x, first)
    for other in ((1, 0), (0, 1)):
        assert (begin(start, policy, group, other).x != first).flatten(1).any(1).all()


@pytest.mark.parametrize("path", [FlowPath(), FlowPath(3), VpPath(), VP], ids=["flow", "shifted", "vp", "cosine"])
@pytest.mark.parametrize("strength", [0.3, 0.6, 0.85])
def test_a_reference_row_is_the_noised_picture_at_the_first_level_below_its_strength(
    path: Path, strength: float
) -> None:
    policy, group = model(path), members(4, 3)
    given = prompts(4)
    x, entry, references = begin(Reference(strength, share=0.5), policy, group)
    levels = [sigma / (alpha + sigma) for _, alpha, sigma in path.grid(10)]
    chosen = entry > 0
    assert torch.equal(references, chosen)
    assert group[chosen].unique().numel() == 2
    (enter,) = entry[chosen].unique().tolist()
    assert levels[enter] <= strength + 1e-9 < levels[enter - 1]
    noise = policy.noise((0, 0, "start"), range(12))
    here = path.grid(10)[enter]
    for row in range(12):
        expected = noise[row]
        if chosen[row]:
            latent = 2 * given[group[row]].reference[:1] - 1
            expected = here.alpha * latent + here.sigma * noise[row]
        torch.testing.assert_close(x[row], expected)


@pytest.mark.parametrize(("share", "groups"), [(0.25, 2), (0.5, 4), (0.75, 6), (1.0, 8)])
def test_references_are_drawn_a_whole_group_at_a_time(share: float, groups: int) -> None:
    policy, group = model(), members(8, 3)
    drawn = set()
    for iteration in range(12):
        entry = begin(Reference(share=share), policy, group, (0, iteration)).entry
        by_group = (entry > 0).view(8, 3)
        assert (by_group.all(1) | ~by_group.any(1)).all()
        assert by_group.all(1).sum() == groups
        drawn.add(tuple(by_group.all(1).tolist()))
    assert len(drawn) == 1 if share == 1 else len(drawn) > 4


def test_a_prompt_without_a_picture_is_named() -> None:
    policy = model()
    with pytest.raises(ValueError, match=r'plan\.start = "reference": the prompt "bare" has no reference image'):
        Reference(share=1.0).begin(
            policy, [Prompt("bare")], StartRows(members(1, 2), torch.arange(2)), policy.path.grid(10), (0, 0)
        )


@pytest.mark.parametrize("settings", [{"strength": 0}, {"strength": 1.1}, {"share": 0}, {"share": 1.1}], ids=str)
def test_a_share_or_strength_outside_its_range_is_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        Reference(**settings)


@pytest.mark.parametrize("path", [FlowPath(), VpPath()], ids=["flow", "vp"])
def test_a_strength_that_leaves_no_step_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"start\.strength 0\.001 lies below the noise .* of 10 steps"):
        begin(Reference(strength=0.001), model(path), members(4, 3))
    entry = begin(Reference(strength=0.101), model(), members(4, 3)).entry
    assert set(entry.tolist()) == {0, 9}


@pytest.mark.parametrize(("steps", "strength", "enter"), [(10, 0.3, 7), (20, 0.3, 14), (20, 0.05, 19), (10, 0.6, 4)])
def test_a_level_that_equals_the_strength_is_at_it(steps: int, strength: float, enter: int) -> None:
    assert Reference(strength).entry_step(FlowPath().grid(steps)) == enter


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Plan(10, Cps(), Prefix(2), start=Reference(0.31)), "window trains no step from 7 on"),
        (Plan(10, Cps(), Prefix(8), Funnel((), (2,), close=True), Reference(0.31)), "a window may close before"),
    ],
)
def test_plans_in_which_references_come_too_late_are_refused(plan: Plan, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan.check(FlowPath(), 4)


def test_rows_take_no_step_before_they_enter() -> None:
    policy, given = model(), prompts(4)
    plan = Plan(steps=10, sampler=Cps(), start=Reference(strength=0.6, share=0.5))
    rollout = roll(policy, given, 3, plan, iteration=0, seed=0)
    late = rollout.references.nonzero()[:, 0].tolist()
    early = (~rollout.references).nonzero()[:, 0].tolist()
    assert (len(late), len(early)) == (6, 6)
    assert [t.step for t in rollout.transitions] == list(range(9))
    for transition in rollout.transitions:
        assert transition.rows.tolist() == (early if transition.step < 4 else sorted(early + late))
    assert policy.meter.counts["training"] == 4 * 6 + 6 * 12
    start = begin(plan.start, policy, rollout.group).x
    torch.testing.assert_close(rollout.transitions[4].x[late], start[late])


def test_rows_that_begin_at_noise_are_the_same_with_and_without_references() -> None:
    plan = Plan(steps=6, sampler=Ddim(), start=Reference(share=0.5))
    mixed = roll(model(VP), prompts(4), 3, plan, iteration=0, seed=0)
    plain = roll(model(VP), prompts(4), 3, Plan(steps=6, sampler=Ddim()), iteration=0, seed=0)
    torch.testing.assert_close(mixed.x0[~mixed.references], plain.x0[~mixed.references])
    assert not plain.references.any()


@pytest.mark.parametrize("parametrisation", ["velocity", "epsilon"])
def test_all_rows_may_begin_at_references(parametrisation: str) -> None:
    policy = Scenes(parametrisation, start="random").load(Runtime())
    given = [Prompt("a red circle", reference=torch.rand(3, 32, 32))]
    plan = Plan(steps=4, sampler=Cps(), window=Whole(), start=Reference(strength=0.55, share=1.0))
    rollout = roll(policy, given, 2, plan, iteration=0, seed=0)
    assert rollout.references.all()
    assert [t.step for t in rollout.transitions] == [2, 3][: len(rollout.transitions)]
    assert policy.meter.counts["training"] == 2 * 2


def test_rows_that_enter_at_the_first_step_are_still_references() -> None:
    """Stable Diffusion's path begins at a noise level of 0.94, below a strength of 0.95."""
    policy = model(VpPath())
    _, entry, references = begin(Reference(strength=0.95), policy, members(4, 3))
    assert not entry.any()
    assert references.sum() == 6


def test_reference_rows_of_a_group_can_share_their_noise() -> None:
    policy, group = model(VP), members(4, 3)
    x, entry, references = begin(Reference(noise="group"), policy, group)
    assert len(x.flatten(1).unique(dim=0)) == 4
    _, other_entry, other_references = begin(Reference(), policy, group)
    assert torch.equal(entry, other_entry)
    assert torch.equal(references, other_references)
    fresh = policy.noise((0, 0, "start"), range(4))[group]
    assert torch.equal(x[~references], fresh[~references])


def test_a_funnel_receives_which_rows_have_a_reference() -> None:
    policy, log = model(), []

    def score(images: Tensor, _: object, references: Tensor) -> Tensor:
        log.append(references)
        return images.mean((1, 2, 3))

    plan = Plan(8, Cps(0.7), Whole(), Funnel((5,), (2,)), Reference(0.8, 0.5))
    rollout = roll(policy, prompts(4), 3, plan, iteration=0, seed=0, score=score)
    assert [mask.sum().item() for mask in log] == [2 * 3]
    assert rollout.references.sum() == 2 * 2
