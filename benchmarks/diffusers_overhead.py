"""What our loop costs over the bare diffusers network: rollout and update, on random weights, in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/diffusers_overhead.py [--size demo] [--rounds 9] [--set key=value ...]

Ours: `roll`, and the terms of the policy gradient with backward, clipping, optimizer step and average; LoRA, no KL.
Bare: the same calls of the network with the same inputs, forward alone for the rollout's, forward and backward for the
update's. Rounds alternate; ratios of medians are printed. On a GPU take --size ssd-1b or sdxl.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grpaint.backends.synthetic.pipelines import SIZES, save
from grpaint.core.runtime import resolve
from grpaint.recipe.config import override
from grpaint.recipe.config import resolve as resolve_recipe
from grpaint.rollout.rollout import Rollout, roll

TABLE = {
    "plan": {"steps": 10, "sampler": {"kind": "ddim"}, "start": {"kind": "shared"}},
    "rewards": {"jpeg": {"kind": "jpeg"}},
    "train": {"iterations": 1, "learning_rate": 1e-12, "prompts": 2, "group_size": 8},
}


def seconds(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    done = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, done


def opened(size: str, sets: list[str]) -> tuple[Any, Any]:
    """A recipe on random weights of a size, and its policy."""
    with tempfile.TemporaryDirectory() as place:
        base = save(size, Path(place) / size)
        model = {"kind": "diffusers", "base": str(base), "lora": {"rank": 16}, "batch": 8}
        prompts = Path(place) / "prompts.txt"
        prompts.write_text("".join(f"{n} large red circles above a small blue square\n" for n in range(99)))
        data = {"kind": "prompts", "train": str(prompts)}
        recipe: Any = resolve_recipe(override({"model": model, "data": data, **TABLE}, sets), "train")[0]
        recipe.data.prepare(str)
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        return recipe, recipe.model.load(resolve(recipe.device, recipe.precision))


def report(times: dict[str, list[tuple[float, float]]]) -> None:
    """Medians of ours and of the bare network, and their ratios."""
    for name, pairs in times.items():
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = statistics.median(a / b for a, b in pairs)
        print(
            f"{name}: ours {ours:.3f} s, bare {theirs:.3f} s, ratio of medians {ours / theirs:.3f}, median {ratios:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="demo", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    args = parser.parse_args()
    recipe, policy = opened(args.size, args.sets)
    network, parameters = getattr(policy.pipe, policy.family.NETWORK), list(policy.parameters())
    optimizers = recipe.train.optimizer.make(parameters, 1e-12)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    network.register_forward_pre_hook(lambda _, given, named: calls.append((given, named)), with_kwargs=True)

    def rollout(iteration: int) -> Rollout:
        prompts = recipe.data.prompts(recipe.train.prompts, iteration, 0)
        return roll(policy, prompts, recipe.train.group_size, recipe.plan, iteration=iteration, seed=0)

    def update(rolled: Rollout) -> None:
        advantage = torch.linspace(-1, 1, len(rolled.group)) + 1e-3  # no row is flat: the dearest update
        for term in recipe.objective(policy, rolled, advantage):
            term.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        policy.blend("average", 0.9)

    def bare(made: list[tuple[tuple[Any, ...], dict[str, Any]]], *, backward: bool) -> None:
        for given, named in made:
            with torch.set_grad_enabled(backward), policy.runtime.autocast():
                out = network(*given, **named)[0]
            if backward:
                out.float().square().mean().backward()
        for parameter in parameters:
            parameter.grad = None

    update(rollout(0))
    times: dict[str, list[tuple[float, float]]] = {"rollout": [], "update": []}
    for number in range(1, args.rounds + 1):
        calls.clear()
        mine, rolled = seconds(lambda n=number: rollout(n), policy.runtime.device)
        made = list(calls)
        times["rollout"].append((mine, seconds(lambda m=made: bare(m, backward=False), policy.runtime.device)[0]))
        calls.clear()
        mine, _ = seconds(lambda r=rolled: update(r), policy.runtime.device)
        trained = list(calls)
        times["update"].append((mine, seconds(lambda m=trained: bare(m, backward=True), policy.runtime.device)[0]))
    print(
        f"{args.size}, {policy.runtime.device} {policy.runtime.precision}, {torch.get_num_threads()} threads, "
        f"{len(made)} and {len(trained)} calls, {args.rounds} rounds"
    )
    report(times)


if __name__ == "__main__":
    main()
