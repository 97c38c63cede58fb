"""Does the loop cost more than the model? Rollout + update against the bare network on the same batches, in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/overhead.py [--recipe flow-grpo-fast] [--rounds 9] [--set key=value ...]

Ours: `roll`, the objective's terms with their backward, gradient clipping, optimizer step and EMA. Bare: the network's
own forward for every call that the rollout made, and forward + backward for every call that the update made, on random
tensors of the same shapes. Rounds alternate; the ratio of medians is printed, and the median of the rounds' ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from grpaint.core.runtime import resolve
from grpaint.recipe.config import open_recipe
from grpaint.rollout.rollout import roll


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="flow-grpo-fast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    args = parser.parse_args()
    recipe, _ = open_recipe(args.recipe, "train", args.sets)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    runtime = resolve(recipe.device, recipe.precision)
    policy = recipe.model.load(runtime)
    optimizers = recipe.train.optimizer.make(policy.parameters(), 1e-12)
    calls: list[tuple[int, bool]] = []
    policy.net.register_forward_pre_hook(lambda _, given: calls.append((len(given[0]), torch.is_grad_enabled())))
    parameters = list(policy.parameters())

    def ours(iteration: int) -> None:
        prompts = recipe.data.prompts(recipe.train.prompts, iteration, 0)
        rollout = roll(policy, prompts, recipe.train.group_size, recipe.plan, iteration=iteration, seed=0)
        advantage = torch.linspace(-1, 1, len(rollout.group)) + 1e-3  # no row is flat: the dearest update
        for term in recipe.objective(policy, rollout, advantage):
            term.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        policy.blend("average", 0.9)

    def bare(made: list[tuple[int, bool]], inputs: dict[int, tuple[Tensor, Tensor, Tensor]]) -> None:
        for rows, with_grad in made:
            with torch.set_grad_enabled(with_grad), runtime.autocast():
                out = policy.net(*inputs[rows])
            if with_grad:
                out.float().square().mean().backward()
        for parameter in parameters:
            parameter.grad = None

    ours(0)
    ratios, pairs = [], []
    for round_ in range(args.rounds):
        calls.clear()
        mine = seconds(lambda i=round_: ours(i + 1))
        made = list(calls)
        states = policy.encode(recipe.data.prompts(1, 0, 0)).states
        inputs = {
            rows: (torch.randn(rows, *recipe.model.sample_shape), torch.rand(rows), states.expand(rows, -1, -1))
            for rows in {rows for rows, _ in made}
        }
        theirs = seconds(lambda m=made, i=inputs: bare(m, i))
        pairs.append((mine, theirs))
        ratios.append(mine / theirs)
        print(f"round {round_ + 1}: ours {mine:.3f} s, bare {theirs:.3f} s, ratio {mine / theirs:.3f}", flush=True)
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    print(f"{args.recipe}, {runtime.device} {runtime.precision}, {torch.get_num_threads()} threads, {len(made)} calls")
    print(f"ratio of medians {medians[0] / medians[1]:.3f}, median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
