"""Rewards that the ranks of a machine share: the first of these ranks has them, and scores the others' images too.

Scoring is a round: the others send their images and the numbers of their prompts, and the first rank answers each.
Ranks may score unequally often, so one that has nothing more to score takes part in rounds until none has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from grpaint.core.policy import Prompt, Reward
from grpaint.parallel.world import ONE, Message, World

Columns = dict[str, Tensor]
NOTHING: Message = None, {}  # of a rank that has finished; as the answer: all have
OWN: Message = {}, {}  # of the first rank while it scores its own images; as the answer: some rank has not finished


@dataclass(frozen=True)
class Sharing:
    """The rewards that the ranks of a machine share, by ``names``, and all ``prompts``, which every rank knows."""

    names: frozenset[str] = frozenset()
    world: World = ONE
    prompts: Sequence[Prompt] = ()


@dataclass(frozen=True)
class NodeRewards:
    """All rewards of a run. ``score_all(rewards, images, prompts)`` returns the columns of some of them."""

    rewards: Mapping[str, Reward]
    score_all: Callable[[Mapping[str, Reward], Tensor, Sequence[Prompt]], Columns]
    sharing: Sharing

    @property
    def _alone(self) -> bool:
        return not self.sharing.names or self.sharing.world.local_size == 1

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Columns:
        """Return the columns of this rank's images, in the order of the rewards.

        Raises:
            RewardError: a reward fails, here or on the machine's first rank.
        """
        if self._alone:
            return self.score_all(self.rewards, images, prompts)
        return self.sharing.world.meanwhile(partial(self._score_in_round, images, prompts))

    def _score_in_round(self, images: Tensor, prompts: Sequence[Prompt]) -> Columns:
        if self.sharing.world.local_rank == 0:
            columns = self.score_all(self.rewards, images, prompts)
            self._answer(OWN)
            return columns
        names = [name for name in self.rewards if name in self.sharing.names]
        numbers = {id(prompt): number for number, prompt in enumerate(self.sharing.prompts)}
        rows = [numbers[id(prompt)] for prompt in prompts]
        request = {"names": names, "rows": rows, "device": images.device.type}
        self.sharing.world.gather_on_node((request, {"images": images}))
        own = {name: reward for name, reward in self.rewards.items() if name not in names}
        columns = self.score_all(own, images, prompts)
        columns |= self.sharing.world.scatter_on_node([])[1]
        return {name: columns[name] for name in self.rewards}

    def finish(self) -> None:
        """Take part in the other ranks' rounds until none has images to score; all ranks of a machine call it."""
        while not self._alone and self.sharing.world.meanwhile(partial(self._answer, NOTHING)) != NOTHING:
            pass

    def _answer(self, own: Message) -> Message:
        """Take part in a round without images for another rank to score, and return the answer."""
        requests = self.sharing.world.gather_on_node(own)
        over = all(request is None for request, _ in requests)
        answers = [NOTHING if over else (OWN[0], self._scores(*message)) for message in requests]
        return self.sharing.world.scatter_on_node(answers)

    def _scores(self, request: Any, tensors: Mapping[str, Tensor]) -> Columns:
        """Return the columns that a rank asks for, if it asks for any."""
        if not request:
            return {}
        rewards = {name: self.rewards[name] for name in request["names"]}
        prompts = [self.sharing.prompts[number] for number in request["rows"]]
        return self.score_all(rewards, tensors["images"].to(request["device"]), prompts)
