"""An iteration's samples and their scores; sampled in parts, one part can be scored while the next is sampled."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.learn.table import RewardTable
from grpaint.parallel.background import BackgroundCall
from grpaint.recipe.config import TrainRecipe
from grpaint.rollout.parts import Parts
from grpaint.rollout.rollout import Roller, Rollout, roll
from grpaint.run.loop import Loop
from grpaint.run.memory import memory


class Gathering:
    """Rolls out and scores, iteration by iteration.

    Rewards are asked one question after another and in the same order, with overlap or without: a funnel's previews
    wait for the part before. So whatever a reward keeps to itself, overlap changes no number.
    """

    def __init__(self, recipe: TrainRecipe, loop: Loop) -> None:
        self.recipe, self.loop = recipe, loop
        self._pending: BackgroundCall[RewardTable] | None = None
        self._asked = 0
        self._spent()  # what self-tests cost is no iteration's, or a resumed run's lines would differ

    def __call__(self, iteration: int) -> tuple[Rollout, RewardTable]:
        """The rollout of an iteration and what its finished images score."""
        train = self.recipe.train
        self._asked, self._pending = 0, None
        prompts = self.recipe.data.prompts(train.prompts, iteration, train.seed)
        both = self._whole(prompts, iteration) if train.parts == 1 else self._in_parts(prompts, iteration)
        self.loop.record({"cost/reward_calls": self._asked})
        self.loop.record(self._spent())
        return both

    def _spent(self) -> dict[str, int]:
        """What rewards that cost something have cost since this was last asked."""
        counted = {
            name: item.reward.spent() for name, item in self.recipe.rewards.items() if hasattr(item.reward, "spent")
        }
        return {f"cost/{name}/{what}": count for name, costs in counted.items() for what, count in costs.items()}

    def _whole(self, prompts: Sequence[Prompt], iteration: int) -> tuple[Rollout, RewardTable]:
        train, policy = self.recipe.train, self.loop.policy
        with self.loop.phase("rollout"):
            rollout = roll(
                policy,
                prompts,
                train.group_size,
                self.recipe.plan,
                iteration=iteration,
                seed=train.seed,
                score=self._preview,
                retain=train.retain,
            )
        with self.loop.phase("reward"), torch.no_grad():
            return rollout, self._score(policy.decode(rollout.x0), _theirs(rollout), rollout.references)

    def _in_parts(self, prompts: Sequence[Prompt], iteration: int) -> tuple[Rollout, RewardTable]:
        train, policy = self.recipe.train, self.loop.policy
        with self.loop.phase("rollout"), torch.no_grad():
            roller = Roller(policy, prompts, train.group_size, self.recipe.plan, (train.seed, iteration))
        parts = Parts(roller, train.parts, self._preview)
        sampling, done, scores = iter(parts), list[Rollout](), list[BackgroundCall[RewardTable]]()
        for _ in range(train.parts):
            with self.loop.phase("rollout"), torch.no_grad():
                part = next(sampling)
                images = policy.decode(part.x0)
            done.append(part)
            scores.append(self._start(images, part))
            if not train.overlap:
                self._wait()
        self._wait()
        return parts.joined(done), RewardTable.joined([later.result() for later in scores])

    def _start(self, images: Tensor, part: Rollout) -> BackgroundCall[RewardTable]:
        """Score a part once the one before it is."""
        before = self._pending

        def work() -> RewardTable:
            if before:
                before.result()
            start = time.perf_counter()
            try:
                with memory("reward"):
                    return self._score(images, _theirs(part), part.references)
            finally:
                self.loop.book("reward", time.perf_counter() - start)

        self._pending = BackgroundCall(work)
        return self._pending

    def _wait(self) -> None:
        """Until no part is being scored."""
        if self._pending:
            with self.loop.phase("reward_wait"):
                self._pending.result()

    def _preview(self, images: Tensor, prompts: Sequence[Prompt], references: Tensor) -> Tensor:
        """What a funnel prunes by, and step-aware advantages credit."""
        if self._pending:
            self._pending.result()
        return self._score(images, prompts, references).total()

    def _score(self, images: Tensor, prompts: Sequence[Prompt], references: Tensor) -> RewardTable:
        self._asked += len(images) * len(self.recipe.rewards)
        return self.recipe.reward_set().score(images, prompts, references)


def _theirs(rollout: Rollout) -> list[Prompt]:
    """Every row's prompt."""
    return [rollout.prompts[number] for number in rollout.group.tolist()]
