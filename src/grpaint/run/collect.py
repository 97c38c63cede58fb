"""Roll out and score the samples of an iteration; one part can be scored while the next is sampled."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.core.user_code import user_code
from grpaint.learn.table import RewardTable
from grpaint.parallel.background import BackgroundCall
from grpaint.recipe.config import TrainRecipe
from grpaint.rollout.parts import RolloutParts
from grpaint.rollout.rollout import Roller, Rollout
from grpaint.run.loop import Loop
from grpaint.run.memory import memory
from grpaint.run.pictures import small_images
from grpaint.run.shares import gather_table, number_rows, outline, own_samples


class Collector:
    """Collects the rollout and the scores of one iteration after another.

    Rewards are called one call at a time and always in the same order: a funnel's previews wait until the part before
    is scored. So overlap changes no number, even if a reward has state of its own.
    """

    def __init__(self, recipe: TrainRecipe, loop: Loop) -> None:
        self.recipe, self.loop = recipe, loop
        self._pending: BackgroundCall[RewardTable] | None = None
        self._calls, self._rewards = 0, recipe.reward_set()
        self.images: list[Tensor] = []  # small ones of this process's last rollout, if the loop is going to show them
        self._new_costs()  # self-tests belong to no iteration: a resumed run's lines would differ

    def __call__(self, iteration: int) -> tuple[Rollout, Rollout, RewardTable]:
        """Return this process's rollout of an iteration, an outline of all processes', and the scores of all images."""
        train = self.recipe.train
        self._calls, self._pending, self.images = 0, None, []
        prompts = self.recipe.data.prompts(train.prompts, iteration, train.seed)
        self._rewards = self.recipe.reward_set().among(self.loop.world, prompts)
        with self.loop.phase("rollout"), torch.no_grad():
            samples, key = own_samples(self.recipe, len(prompts), self.loop.world), (train.seed, iteration)
            roller = Roller(self.loop.policy, prompts, train.group_size, self.recipe.plan, key, samples=samples)
        rollout, table = self._whole(roller) if train.parts == 1 else self._in_parts(roller)
        with self.loop.phase("reward"), torch.no_grad():
            self._rewards.finish()
        own = [len(rollout.group), {"cost/reward_calls": self._calls} | self._new_costs()]
        counts, costs = zip(*self.loop.world.gather_values(own), strict=True)
        for name, value in (item for rank in costs for item in rank.items()):
            self.loop.count(name, value)
        rollout = number_rows(rollout, counts, self.loop.world)
        whole = outline(rollout, roller.course.legs, self.loop.world)
        return rollout, whole, gather_table(table, self.loop.world)

    def _new_costs(self) -> dict[str, int]:
        """Return what rewards that count their costs, such as tokens, have cost since the last call."""
        rewards = {name: item.reward for name, item in self.recipe.rewards.items() if hasattr(item.reward, "spent")}
        costs = {}
        for name, reward in rewards.items():
            with user_code(f"reward {name}", RewardError):
                costs[name] = dict(reward.spent())
        return {f"cost/{name}/{unit}": count for name, counts in costs.items() for unit, count in counts.items()}

    def _whole(self, roller: Roller) -> tuple[Rollout, RewardTable]:
        with self.loop.phase("rollout"), torch.no_grad():
            rollout = roller.run(self._preview, retain=self.recipe.train.retain)
        with self.loop.phase("reward"), torch.no_grad():
            images = self.loop.policy.decode(rollout.x0)
            self._show(images)
            return rollout, self._score(images, _prompt_of_each_row(rollout), rollout.references)

    def _show(self, images: Tensor) -> None:
        if self.loop.drawing_follows:
            self.images.append(small_images(images))

    def _in_parts(self, roller: Roller) -> tuple[Rollout, RewardTable]:
        train, policy = self.recipe.train, self.loop.policy
        parts = RolloutParts(roller, train.parts, self._preview)
        sampling, rollouts, scores = iter(parts), list[Rollout](), list[BackgroundCall[RewardTable]]()
        for _ in range(min(train.parts, len(roller.prompt_numbers))):
            with self.loop.phase("rollout"), torch.no_grad():
                part = next(sampling)
                images = policy.decode(part.x0)
                self._show(images)
            rollouts.append(part)
            scores.append(self._start(images, part))
            if not train.overlap:
                self._wait()
        self._wait()
        return parts.join(rollouts), RewardTable.join([call.result() for call in scores])

    def _start(self, images: Tensor, part: Rollout) -> BackgroundCall[RewardTable]:
        """Start to score a part in the background, after the part before it."""
        previous = self._pending

        def work() -> RewardTable:
            if previous:
                previous.result()
            start = time.perf_counter()
            try:
                with memory("reward"):
                    return self._score(images, _prompt_of_each_row(part), part.references)
            finally:
                self.loop.book("reward", time.perf_counter() - start)

        self._pending = BackgroundCall(work)
        return self._pending

    def _wait(self) -> None:
        """Wait until no part is being scored."""
        if self._pending:
            with self.loop.phase("reward_wait"):
                self.loop.world.meanwhile(self._pending.result)

    def _preview(self, images: Tensor, prompts: Sequence[Prompt], references: Tensor) -> Tensor:
        """Return the scores of previews, by which a funnel prunes and step-aware advantages credit steps."""
        if self._pending:
            self.loop.world.meanwhile(self._pending.result)
        return self._score(images, prompts, references).total()

    def _score(self, images: Tensor, prompts: Sequence[Prompt], references: Tensor) -> RewardTable:
        self._calls += len(images) * len(self._rewards.rewards)
        return self._rewards.score(images, prompts, references)


def _prompt_of_each_row(rollout: Rollout) -> list[Prompt]:
    """Return the prompt of every row."""
    return [rollout.prompts[number] for number in rollout.group.tolist()]
