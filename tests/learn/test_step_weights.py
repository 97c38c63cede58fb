"""Weights of the trained steps, against their papers' formulas and the gradients that they make alike."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from grpaint.core import Cps, DanceSde, Ddim, FlowPath, FlowSde, Path, Prediction, Sampler, VpPath, step
from grpaint.learn.step_weights import step_weights
from grpaint.rollout import Rollout, Transition

SAMPLERS = {
    "flow-sde": (FlowPath(), FlowSde(0.7)),
    "dance-sde": (FlowPath(), DanceSde(0.3)),
    "cps": (FlowPath(), Cps(0.6)),
    "ddim": (VpPath(), Ddim(1.0)),
    "cps on a diffusion path": (VpPath(), Cps(0.6)),
}


def recorded(path: Path, sampler: Sampler) -> tuple[Rollout, list[Tensor]]:
    """Steps 1 to 6 of eight with one noise, of which a window may also reach step 0; gradients by the velocity."""
    generator = torch.Generator().manual_seed(0)
    x, v, noise = torch.randn(3, 3, 1, 4, 4, dtype=torch.float64, generator=generator)
    steps = list(pairwise(path.grid(8)))[:7]
    transitions, gradients = [], []
    for number, (here, there) in list(enumerate(steps))[1:]:
        leaf = v.clone().requires_grad_()
        x0 = (x - here.sigma * leaf) / (here.alpha + here.sigma)
        now = step(sampler, Prediction(x0, x0 + leaf), here, there)
        mean = now.mean.detach()
        x_next = mean + now.std * noise
        logp = now.log_prob(x_next)
        (gradient,) = torch.autograd.grad(logp.sum(), leaf)
        transitions.append(Transition(number, torch.arange(3), here, there, x, x_next, logp.detach(), mean, now.std))
        gradients.append(gradient)
    rows = torch.zeros(3, dtype=torch.long)
    return Rollout([], rows, None, sampler, tuple(transitions), x, {}, rows.bool(), 0, 0, reach=tuple(steps)), gradients


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_gradient_of_every_step_is_of_one_size(name: str) -> None:
    rollout, gradients = recorded(*SAMPLERS[name])
    weights = step_weights("gradient", rollout)
    sizes = [weight * gradient.norm().item() for weight, gradient in zip(weights, gradients, strict=True)]
    assert sizes == pytest.approx([sizes[0]] * 6, rel=1e-9)
    plain = [gradient.norm().item() for gradient in gradients]
    assert max(plain) > 1.1 * min(plain)


def test_the_weights_of_flow_sde_are_those_of_the_papers() -> None:
    rollout, _ = recorded(*SAMPLERS["flow-sde"])
    flash, temp_flow = [], []
    for here, there in rollout.reach[1:]:
        s, length = here.sigma, here.sigma - there.sigma
        level = 0.7 * math.sqrt(s / (1 - s))
        flash.append(1 / (math.sqrt(length) / level + level * math.sqrt(length) * (1 - s) / (2 * s)))
        temp_flow.append(level * math.sqrt(length))
    for kind, published in (("gradient", flash), ("noise", temp_flow)):
        weights = step_weights(kind, rollout)
        assert [w / weights[0] for w in weights] == pytest.approx([size / published[0] for size in published])
        every = dataclasses.replace(rollout, reach=rollout.reach[1:])
        assert sum(step_weights(kind, every)) == pytest.approx(6)
        alone = dataclasses.replace(rollout, transitions=rollout.transitions[2:3])
        assert step_weights(kind, alone) == weights[2:3]  # a window of one step has its share too
    assert step_weights("equal", rollout) == [1.0] * 6
