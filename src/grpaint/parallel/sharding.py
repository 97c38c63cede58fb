"""A network whose parameters the ranks of a machine divide (FSDP2), and the turns in which all of them call it.

A call of a divided network gathers its parameters from all ranks, so all must make it, and ranks do not need it equally
often: shares are uneven, and rows without an advantage are left out. So ranks agree on each call. Those that have no
use for it make one of a single row and throw the result away, also while they wait for an exchange or a result.
"""

import time
from collections.abc import Callable, Collection
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grpaint.core.errors import RunError
from grpaint.parallel.background import BackgroundCall

PAUSE_S = 0.005  # between two rounds in which no rank needs the network


class Wish(IntEnum):
    """What a rank is about to do; in a round the largest of all ranks' wishes is done."""

    EXCHANGE = 0  # with all ranks, once all have come so far
    WAIT = 1  # for a result that another thread computes
    BACKWARD = 2
    FORWARD = 3


class Ranks(Protocol):
    """The ranks that divide a network; see :class:`grpaint.parallel.group.Group`."""

    def mesh(self, device: str) -> Any:
        """Return their device mesh."""

    def wishes(self, own: list[int]) -> list[list[int]]:
        """Return the numbers of every rank."""

    def guard(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns; raises RankLost if another rank has gone."""


class Sharding:
    """One divided network. ``padding`` makes the smallest call of it, with the weights that are being trained."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._graph: Tensor | None = None  # the output of a padding call, for backward passes that are not needed here
        self.padding: Callable[[], Tensor]

    def divide(self, network: nn.Module, whole: Collection[nn.Parameter], device: str) -> None:
        """Replace every parameter by this rank's share of it, on ``device``, except those in ``whole``."""
        from torch.distributed.fsdp import fully_shard

        mesh = self._ranks.mesh(device)
        for block in [*repeated_blocks(network), network]:
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))

    def call(self, forward: Callable[[], Tensor]) -> Tensor:
        """Return what ``forward`` returns, which calls the network once; its backward pass is a turn of its own.

        Gradients reach the network's parameters alone, not what is given to it.
        """
        self._come_to(Wish.FORWARD)
        output: Tensor = self._ranks.guard(forward)
        if not output.requires_grad:
            return output
        anchor = torch.zeros((), device=output.device, requires_grad=True)
        return _TurnBackward.apply(anchor, self, [output])

    def backward(self, output: Tensor, gradient: Tensor) -> None:
        """Run the backward pass of a call in a turn."""
        # in a thread, since FSDP takes a call within a backward pass for one that recomputes activations
        BackgroundCall(lambda: self._come_to(Wish.BACKWARD)).result()
        self._ranks.guard(lambda: torch.autograd.backward(output, gradient))

    def settle(self) -> None:
        """Take part in the others' turns until every rank is about to make the same exchange."""
        self._come_to(Wish.EXCHANGE)
        self._graph = None  # the weights may change

    def wait(self, done: Callable[[], bool]) -> None:
        """Take part in the others' turns until ``done`` holds."""
        while not done():
            self._round(Wish.WAIT)

    def _come_to(self, own: Wish) -> None:
        while self._round(own) != own:
            pass

    def _round(self, own: Wish) -> Wish:
        """Agree on what is done next, and do it unless it is this rank's own wish; return what it is."""
        everyone = self._ranks.wishes([own, self._graph is not None])
        turn = Wish(max(wish for wish, _ in everyone))
        has_no_graph = turn == Wish.BACKWARD and any(wish != turn and not has_graph for wish, has_graph in everyone)
        if has_no_graph or turn == Wish.FORWARD != own:
            self._pad_forward(keep=has_no_graph and own != turn)
            return Wish.FORWARD
        if turn == Wish.BACKWARD != own:
            self._pad_backward()
        elif turn == Wish.WAIT:
            time.sleep(PAUSE_S)
        return turn

    def _pad_forward(self, *, keep: bool) -> None:
        with torch.set_grad_enabled(keep):
            output = self._ranks.guard(self.padding)
        self._graph = output if keep else self._graph

    def _pad_backward(self) -> None:
        graph = self._graph
        if graph is None:
            raise AssertionError("a padding backward pass needs a graph")
        self._ranks.guard(lambda: torch.autograd.backward(graph, torch.zeros_like(graph), retain_graph=True))


class _TurnBackward(torch.autograd.Function):
    """The identity on the output of a divided network, whose backward pass runs the network's own in a turn."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, sharding: Sharding, outputs: list[Tensor]) -> Tensor:
        ctx.sharding, ctx.outputs = sharding, outputs
        return outputs[0].detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        if not ctx.outputs:
            raise RunError('processes.shard: two backward passes through one call of the network; use shard = "none".')
        ctx.sharding.backward(ctx.outputs.pop(), gradient)
        return None, None, None


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the modules of a network that are divided one by one, inner ones first.

    They are those that its class says stay on one device, or else the members of its lists.
    """
    names = {name for key in ("_no_split_modules", "_repeated_blocks") for name in getattr(network, key, None) or ()}
    lists = [part for part in network.children() if isinstance(part, nn.ModuleList)]
    members = {member for part in lists for member in part}
    blocks = [part for part in network.modules() if (type(part).__name__ in names if names else part in members)]
    return blocks[::-1]
