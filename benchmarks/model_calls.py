"""What an iteration of each method costs, beside the same iteration unforked and unretained, in turn in one process.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/model_calls.py [METHOD ...] [--rounds 5] [--set key=value ...]
    OMP_WAIT_POLICY=PASSIVE python benchmarks/model_calls.py --published --rounds 21 [--set train.prompts=4 ...]

Rollout, reward, advantage and the update's backward, without optimizer step and anchor, on the base weights.
Evaluations are counted by the policy's own meter (a forward 1, a backward 2 more); seconds are processor seconds, means
over the rounds, which take iterations spread over a window's places; "of the first" divides by those of the first
method, as it is. ``--published`` takes the shape of MixGRPO's table (25 steps, window 4, 14 trained steps in
DanceGRPO, groups of 12) for the methods of that table; 21 rounds are a place each. "Unforked" gives every row its own
copy of the shared start noise; "retained" keeps the graphs of the rollout's noisy steps. Groups without spread are
left out of an update, except where their graphs are kept already.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from grpaint.core.path import Point
from grpaint.core.policy import Policy, Prompt
from grpaint.core.runtime import resolve
from grpaint.learn.objective import PolicyGradient
from grpaint.recipe.config import TrainRecipe, open_recipe, recipe_names, stage_of
from grpaint.recipe.pieces import Model
from grpaint.rollout.rollout import roll
from grpaint.rollout.start import Shared, StartLatents


@dataclasses.dataclass(frozen=True)
class Unforked(Shared):
    """One start noise a prompt, but a row a sample from the first step on."""

    shared = False

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], group: Tensor, grid: Sequence[Point], key: tuple[int, int]
    ) -> StartLatents:
        return StartLatents(*(part[group] for part in super().begin(policy, prompts, group, grid, key)))


SHAPE = ("plan.steps=25", "train.group_size=12", "train.iterations=21")
SLIDE = (*SHAPE, "plan.window.size=4", "plan.window.every=1")
PUBLISHED = {
    "dance-grpo": (*SHAPE, "plan.window.share=0.56", "advantage.keep=12"),
    "mix-grpo": SLIDE,
    "mix-grpo-flash": SLIDE,
    "mix-grpo-flash-star": (*SLIDE, "plan.tail.ratio=0.2"),
}


def iteration(recipe: TrainRecipe, policy: Policy, number: int, *, retain: bool) -> None:
    """One iteration up to its gradients."""
    rewards = recipe.reward_set()
    prompts = recipe.data.prompts(recipe.train.prompts, number, 0)
    rollout = roll(
        policy,
        prompts,
        recipe.train.group_size,
        recipe.plan,
        iteration=number,
        seed=0,
        score=lambda *seen: rewards.score(*seen).total(),
        retain=retain,
    )
    with torch.no_grad():
        images = policy.decode(rollout.x0)
        table = rewards.score(images, [prompts[i] for i in rollout.group.tolist()], rollout.references)
        advantage = recipe.advantage(table, rollout)
    for term in recipe.objective(policy, rollout, advantage):
        term.loss.backward()
    for parameter in policy.parameters():
        parameter.grad = None


def arrangements(recipe: TrainRecipe) -> dict[str, tuple[TrainRecipe, bool]]:
    """The recipe as it is, retained where it can be, and unforked where it forks."""
    out = {"as it is": (recipe, False)}
    if isinstance(recipe.objective, PolicyGradient) and not recipe.objective.minibatch and recipe.train.updates == 1:
        out["retained"] = (recipe, True)
    if recipe.plan.start.shared:
        out["unforked"] = (dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, start=Unforked())), False)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="recipes; all that train when left out")
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    args = parser.parse_args()
    if args.published and args.methods:
        parser.error("--published has methods of its own")
    methods = PUBLISHED if args.published else dict.fromkeys(args.methods or _trained(), ())
    recipes = {name: open_recipe(name, "train", [*sets, *args.sets])[0] for name, sets in methods.items()}
    policies = {name: _load(recipe) for name, recipe in recipes.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    evaluations: dict[tuple[str, str], list[int]] = {}
    for turn in range(
        args.rounds + 1
    ):  # the first warms up, and is dropped; all take their turns, so that noise is shared
        for name, recipe in recipes.items():
            meter = policies[name].meter
            number = round(max(turn - 1, 0) * recipe.train.iterations / args.rounds)
            for label, (arranged, retain) in arrangements(recipe).items():
                before, start = meter.counts["training"], time.process_time()
                iteration(arranged, policies[name], number, retain=retain)
                seconds.setdefault((name, label), []).append(time.process_time() - start)
                evaluations.setdefault((name, label), []).append(meter.counts["training"] - before)
    first = statistics.mean(next(iter(seconds.values()))[1:])
    print(f"{'method':32}{'arrangement':12}{'evaluations':>12}{'seconds':>9}{'of the first':>14}")
    for (name, label), values in seconds.items():
        calls, mean = statistics.mean(evaluations[name, label][1:]), statistics.mean(values[1:])
        print(f"{name:32}{label:12}{calls:12.0f}{mean:9.3f}{mean / first:14.2f}")


def _load(recipe: TrainRecipe) -> Model:
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    policy = recipe.model.load(resolve(recipe.device, recipe.precision))
    if recipe.behaviour:
        policy.blend("behaviour", 0.0)
    return policy


def _trained() -> list[str]:
    return [name for name in recipe_names() if stage_of(name) == "train"]


if __name__ == "__main__":
    main()
