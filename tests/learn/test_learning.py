"""Methods learn: a closed-form reward rises within a few dozen updates of a closed-form policy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.core import Annealed, Cps, DanceSde, Ddim, FlowPath, FlowSde, Lcm, Path, Prompt, Sampler, VpPath
from grpaint.core.runtime import Runtime
from grpaint.learn import (
    AdvantageWeightedMatching,
    BatchNorm,
    BestWorst,
    DiffusionNft,
    DivergenceMask,
    ElboPolicyGradient,
    GroupNorm,
    Guard,
    History,
    LeaveOneOut,
    OptimalVariance,
    PerReward,
    PolicyGradient,
    RewardTable,
    StepAware,
    StepKl,
)
from grpaint.learn.advantage import Advantage
from grpaint.learn.objective import Objective
from grpaint.rollout import Closed, Funnel, Plan, Random, Shared, Sliding, Subset, Tail, Whole, roll

PROMPTS = [Prompt(text) for text in ("a red circle", "a blue cross", "a green square", "a white triangle")]
TARGET = 0.4  # the grey, in [-1, 1], that the reward asks for


def reward(images: Tensor, *_: object) -> Tensor:
    """Minus the squared distance to a flat grey image."""
    return -((2 * images - 1 - TARGET) ** 2).mean((1, 2, 3))


def distance(policy: GaussianPolicy, prompts: list[Prompt]) -> float:
    """The closed-form part of the expected reward that training can move: mean squared distance of the data's means."""
    with torch.no_grad():
        means = policy.net(policy.encode(prompts).embedding)
    return ((means - TARGET) ** 2).mean().item()


def trained(
    path: Path,
    plan: Plan,
    advantage: Advantage,
    objective: Objective | None = None,
    updates: int = 30,
    prompts: list[Prompt] = PROMPTS,
    score: Callable[[Tensor], Tensor] = reward,
) -> tuple[float, float]:
    """Distances to the target before and after."""
    policy = GaussianModel(path=path, spread=0.3).load(Runtime())
    plan.check(path, 12)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.03)
    before = distance(policy, prompts)
    for iteration in range(updates):
        policy.blend("behaviour", min(0.5, 0.05 * iteration))
        rollout = roll(policy, prompts, 12, plan, iteration=iteration, seed=0, score=reward)
        gains = advantage(RewardTable({"grey": score(policy.decode(rollout.x0))}), rollout)
        optimizer.zero_grad()
        for term in (objective or PolicyGradient())(policy, rollout, gains):
            term.loss.backward()
        optimizer.step()
    return before, distance(policy, prompts)


MIX = Plan(8, Cps(0.8), Sliding(2, every=5), start=Shared())
DANCE = Plan(8, DanceSde(0.3), Subset(0.6), outside=DanceSde(0.3), start=Shared())
METHODS = {
    "flow-grpo": (FlowPath(3), Plan(8, FlowSde(0.7)), GroupNorm()),
    "flow-grpo-batch-std": (FlowPath(3), Plan(8, FlowSde(0.7)), GroupNorm("batch")),
    "flow-grpo-cps": (FlowPath(), Plan(8, Cps(0.8)), GroupNorm()),
    "fast-window": (FlowPath(), Plan(8, Cps(0.8), Random(2, 0, 4), start=Shared()), PerReward()),
    "pro-grpo": (FlowPath(3), Plan(8, FlowSde(0.7), prune=Funnel((3, 5), (8, 4))), GroupNorm()),
    "pro-grpo-vp": (VpPath(), Plan(8, Ddim(1.0), Whole(skip_last=0), Funnel((5, 6), (10, 8))), GroupNorm()),
    "ovf": (FlowPath(3), Plan(8, FlowSde(0.7)), OptimalVariance(6, GroupNorm())),
    "dance-grpo": (FlowPath(), DANCE, BestWorst(8)),
    "dance-grpo-vp": (VpPath(), replace(DANCE, sampler=Ddim(1.0), outside=Ddim(1.0)), BestWorst(8)),
    "mix-grpo": (FlowPath(), MIX, PerReward()),
    "mix-grpo-vp": (VpPath(), MIX, PerReward()),
    "mix-grpo-flash": (FlowPath(), replace(MIX, tail=Tail(0.5)), PerReward()),
    "mix-grpo-flash-star": (FlowPath(), replace(MIX, window=Sliding(2, stride=0), tail=Tail(0.4)), PerReward()),
    "mix-grpo-pruned": (FlowPath(), replace(MIX, prune=Funnel((), (6,), close=True)), PerReward()),
    "lcm": (FlowPath(3), Plan(4, Lcm(), outside=Lcm(), prune=Funnel((2,), (8,))), GroupNorm()),
    "lcm-vp": (VpPath(spacing="distilled", final="one"), Plan(3, Lcm(), Random(1, 0, 1)), GroupNorm()),
    "ddpo": (VpPath(), Plan(8, Ddim(1.0), Whole(skip_last=0)), History()),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_raises_its_reward(name: str) -> None:
    path, plan, advantage = METHODS[name]
    before, after = trained(path, plan, advantage)
    assert after < 0.5 * before


@pytest.mark.parametrize("sampler", [Annealed(), Lcm()], ids=str)
@pytest.mark.parametrize("steps", [2, 4, 8])
def test_few_step_sampling_with_step_aware_advantages_raises_its_reward(steps: int, sampler: Sampler) -> None:
    plan = Plan(steps, sampler, previews=True)
    before, after = trained(FlowPath(), plan, StepAware(), PolicyGradient(terminal=0.5))
    assert after < 0.5 * before


ODE = Plan(8, window=Closed(), weights="behaviour")
FORWARD = {
    "diffusion-nft": (FlowPath(), ODE, DiffusionNft()),
    "diffusion-nft-vp": (VpPath(), ODE, DiffusionNft(beta=0.1)),
    "diffusion-nft-funnel": (FlowPath(), replace(ODE, prune=Funnel((3, 5), (8, 4))), DiffusionNft()),
    "epg": (FlowPath(), ODE, ElboPolicyGradient()),
    "epg-vp": (VpPath(), ODE, ElboPolicyGradient()),
    "pepg": (FlowPath(), ODE, ElboPolicyGradient(form="pepg")),
    "par": (FlowPath(), ODE, ElboPolicyGradient(form="par")),
    "awm": (FlowPath(), ODE, AdvantageWeightedMatching()),
    "awm-vp": (VpPath(), ODE, AdvantageWeightedMatching(target="epsilon", weight="uniform")),
}


@pytest.mark.parametrize("name", FORWARD)
def test_a_method_without_likelihoods_raises_its_reward(name: str) -> None:
    path, plan, objective = FORWARD[name]
    objective.check(plan)
    before, after = trained(path, plan, GroupNorm("batch"), objective)
    assert after < 0.5 * before


@pytest.mark.parametrize(
    "settings", [{"surrogate": DivergenceMask()}, {"steps": "noise"}, {"steps": "gradient"}], ids=str
)
def test_a_mask_by_divergence_and_weights_of_steps_raise_their_reward(settings: dict[str, Any]) -> None:
    path, plan, advantage = METHODS["flow-grpo"]
    before, after = trained(path, plan, advantage, PolicyGradient(**settings))
    assert after < 0.5 * before


@pytest.mark.parametrize("advantage", [GroupNorm(), LeaveOneOut()], ids=str)
def test_guard_raises_its_reward(advantage: Advantage) -> None:
    path, plan, _ = METHODS["flow-grpo"]
    before, after = trained(path, plan, advantage, PolicyGradient(Guard()))
    assert after < 0.5 * before


def test_ddpo_relative_to_the_batch_learns_a_prompt_well_and_unlike_prompts_worse_than_with_its_tracker() -> None:
    path, plan, tracker = METHODS["ddpo"]
    before, alone = trained(path, plan, BatchNorm(), prompts=PROMPTS[:1])
    assert alone < 0.3 * before
    before, together = trained(path, plan, BatchNorm())
    _, tracked = trained(path, plan, tracker)
    assert 1.5 * tracked < together < 0.7 * before


@pytest.mark.parametrize("name", ["flow-grpo", "flow-grpo-cps", "ddpo"])
def test_the_opposite_reward_leads_away(name: str) -> None:
    path, plan, advantage = METHODS[name]
    before, after = trained(path, plan, advantage, updates=15, score=lambda images: -reward(images))
    assert after > 1.2 * before


def test_a_constant_reward_teaches_nothing() -> None:
    path, plan, advantage = METHODS["flow-grpo"]
    before, after = trained(path, plan, advantage, updates=3, score=lambda images: torch.full((len(images),), 0.3))
    assert after == before


def test_a_penalty_holds_the_policy_back() -> None:
    path, plan, advantage = METHODS["flow-grpo"]
    before, free = trained(path, plan, advantage, updates=25)
    _, held = trained(path, plan, advantage, PolicyGradient(penalty=StepKl(30.0)), updates=25)
    assert free < held < before * 1.05
