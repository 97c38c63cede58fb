"""The methods that sample in their own ways, on tiny pipelines of both kinds: a flow and an epsilon model."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers
from grpaint.core import Annealed, Cps, DanceSde, Ddim, FlowSde, Prompt
from grpaint.core.runtime import Runtime
from grpaint.learn import BestWorst, GroupNorm, PerReward, PolicyGradient, RewardTable, StepAware
from grpaint.learn.advantage import Advantage
from grpaint.rollout import Funnel, Plan, Rollout, Shared, Sliding, Subset, Tail, roll
from tiny_pipelines import save_all

PROMPTS = [Prompt("a red cat"), Prompt("two blue dogs")]
GROUP = 4
MIX = Plan(6, Cps(0.7), Sliding(2, every=1), start=Shared())
DANCE = Plan(6, DanceSde(0.3), Subset(0.6), outside=DanceSde(0.3), start=Shared())
NOISY = {"sd3": FlowSde(0.7), "sd15": Ddim(1.0)}
METHODS: dict[str, tuple[Plan, Advantage, PolicyGradient]] = {
    "mix-grpo": (MIX, PerReward(), PolicyGradient()),
    "mix-grpo-flash": (replace(MIX, tail=Tail(0.7)), PerReward(), PolicyGradient()),
    "mix-grpo-pruned": (replace(MIX, prune=Funnel((), (3,), close=True)), PerReward(), PolicyGradient()),
    "pro-grpo": (Plan(6, prune=Funnel((2, 4), (3, 2))), GroupNorm(), PolicyGradient()),
    "dance-grpo": (DANCE, BestWorst(2), PolicyGradient()),
    "tafs-grpo": (Plan(4, Annealed(), previews=True), StepAware(), PolicyGradient(terminal=0.5)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(tmp_path_factory.mktemp("pipelines"))


def brightness(images: Tensor, *_: object) -> Tensor:
    return images.mean((1, 2, 3))


def plan_for(name: str, method: str) -> Plan:
    plan = METHODS[method][0]
    if method == "pro-grpo" or (method, name) == ("dance-grpo", "sd15"):  # noisy everywhere, as its path asks
        plan = replace(plan, sampler=NOISY[name])
    return replace(plan, outside=NOISY[name]) if (method, name) == ("dance-grpo", "sd15") else plan


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_a_method_moves_adapters_from_a_ratio_of_one(
    folders: dict[str, Path], name: str, method: str, guidance: float
) -> None:
    policy = Diffusers(str(folders[name]), guidance=guidance, lora=Lora(4)).load(Runtime())
    plan, (_, advantage, objective) = plan_for(name, method), METHODS[method]
    plan.check(policy.path, GROUP)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    norms = []
    for iteration in range(3):
        rollout = roll(policy, PROMPTS, GROUP, plan, iteration=iteration, seed=0, score=brightness)
        images = policy.decode(rollout.x0)
        gains = advantage(RewardTable({"bright": brightness(images)}), rollout)
        norms.append(_update(policy, objective, optimizer, rollout, gains))
    assert all(0 < norm < math.inf for norm in norms)


def _update(
    policy: object, objective: PolicyGradient, optimizer: torch.optim.Optimizer, rollout: Rollout, gains: Tensor
) -> float:
    """One update; the norm of its gradient, after the ratio has been seen to be 1."""
    optimizer.zero_grad()
    seen = 0
    for term in objective(policy, rollout, gains):  # type: ignore[arg-type]
        term.loss.backward()
        if "ratio_error" in term.measures:
            seen += 1
            assert term.measures["ratio_error"].max() <= 1e-6  # rows of other batch shapes differ by rounding
    assert seen
    norms = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    optimizer.step()
    return float(torch.stack(norms).norm())


@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_retained_graphs_give_the_gradients_of_a_second_forward(folders: dict[str, Path], name: str) -> None:
    policy = Diffusers(str(folders[name]), lora=Lora(4)).load(Runtime())
    gradients = []
    for retain in (False, True):
        rollout = roll(policy, PROMPTS, GROUP, MIX, iteration=1, seed=0, retain=retain)
        gains = PerReward()(RewardTable({"bright": brightness(policy.decode(rollout.x0))}), rollout)
        for parameter in policy.parameters():
            parameter.grad = None
        for term in PolicyGradient()(policy, rollout, gains):
            term.loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6 * float(gradients[0].abs().max()))
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_shared_steps_are_taken_once_a_prompt(folders: dict[str, Path], name: str) -> None:
    policy = Diffusers(str(folders[name])).load(Runtime())
    before = policy.meter.counts["training"]
    roll(policy, PROMPTS, GROUP, MIX, iteration=2, seed=0)  # the window begins at step 2
    assert policy.meter.counts["training"] - before == len(PROMPTS) * (2 + 4 * GROUP)
