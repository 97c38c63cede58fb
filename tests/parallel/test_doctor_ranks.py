"""The checks of ``doctor --processes`` pass a sound recipe, and each names the fault that is put into a rank."""

import dataclasses

import pytest
import torch
from ranks import run_ranks

from grpaint.commands.doctor import ranks
from grpaint.commands.doctor.examination import Examination
from grpaint.core.runtime import Runtime
from grpaint.learn.objective import Term
from grpaint.recipe.config import open_recipe

SETS = ["train.group_size=3", "plan.steps=3", "plan.window.size=2", "model.start="]


class Blind:
    """Scores against the best image of the call."""

    def __call__(self, images, prompts):
        brightness = images.mean((1, 2, 3)).cpu()
        return brightness / brightness.max()


def other_weights(case, world):
    if world.rank == 1:
        next(iter(case.policy.weights.module.parameters())).data.add_(1e-3)


def other_prompts(case, world):
    data, prompts = case.recipe.data, case.recipe.data.prompts
    seed = world.rank
    object.__setattr__(data, "prompts", lambda count, iteration, _: prompts(count, iteration, seed))


def noise_by_place(case, world):
    plain = case.policy.noise
    case.policy.noise = lambda key, rows: plain(key, torch.arange(len(rows)))


def score_by_call(case, world):
    item = dataclasses.replace(next(iter(case.recipe.rewards.values())), reward=Blind())
    case.recipe.rewards["blind"] = item


def mean_of_own_rows(case, world):
    objective = case.recipe.objective

    def divided(policy, batch, advantage):
        for term in objective(policy, batch, advantage):
            yield Term(term.loss * batch.total / len(batch.group), term.measures, term.step)

    object.__setattr__(case.recipe, "objective", divided)


def other_step(case, world):
    plain, group = case.policy.blend, world.size > 1 and world.rank == 1

    def blend(into, keep, extrapolation=0.0):
        if group:
            case.trainable[next(iter(case.trainable))].data.mul_(1.01)
        return plain(into, keep, extrapolation)

    case.policy.blend = blend


FAULTS = {
    ranks.WEIGHTS: (other_weights, "without a seed"),
    ranks.PROMPTS: (other_prompts, "depend on the machine"),
    ranks.LATENTS: (noise_by_place, "place of a row"),
    ranks.SCORES: (score_by_call, "needs_group"),
    ranks.GRADIENTS: (mean_of_own_rows, "rollout.total"),
    ranks.STEP: (other_step, "random state of its own"),
}


def examined(world):
    """What the checks find of a sound recipe, and with each fault."""
    findings = {}
    for check, fault in (("", None), *((check, fault) for check, (fault, _) in FAULTS.items())):
        recipe, _ = open_recipe("scenes/mix-grpo", "train", SETS)
        runtime = Runtime("cpu", "fp32")
        case = Examination(recipe, recipe.model.load(runtime), runtime)
        if fault:
            fault(case, world)
        findings[check] = [finding.plain() for finding in ranks.examine_ranks(case, world)]
    return findings


@pytest.fixture(scope="module")
def findings():
    one, other = run_ranks(2, "test_doctor_ranks:examined")
    assert list(one) == list(other)
    return one


def test_a_sound_recipe_passes_every_check(findings):
    assert {finding["check"]: finding["passed"] for finding in findings[""]} == dict.fromkeys(FAULTS, True)


@pytest.mark.parametrize("check", FAULTS)
def test_each_check_names_its_fault(findings, check):
    finding = next(finding for finding in findings[check] if finding["check"] == check)
    assert finding["passed"] is False, finding
    assert FAULTS[check][1] in finding["mend"]
