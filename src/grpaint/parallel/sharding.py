"""A network whose parameters the ranks of a machine divide (FSDP2), and the turns in which all of them call it.

A call of a divided network gathers its parameters from all ranks, so all must make it, and ranks do not need it equally
often: shares are uneven, and rows without an advantage are left out. So ranks agree on each call. Those that have no
use for it make one of a single row and throw the result away, also while they wait for an exchange or a result.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grpaint.core.errors import RunError
from grpaint.core.policy import Weights
from grpaint.parallel.background import BackgroundCall

PAUSE_S = 0.005  # between two rounds in which no rank needs the network

# What a rank is about to do; in a round the largest number of all ranks is done: an exchange, once all have come so
# far; to wait for another thread; a backward pass; a call with each set of weights, one set at a time.
EXCHANGE, WAIT, BACKWARD, FORWARD = range(4)
SETS: tuple[Weights, ...] = ("current", "behaviour", "average", "reference")


class Ranks(Protocol):
    """The ranks of a machine, which divide a network; see :class:`grpaint.parallel.group.Group`."""

    local_rank: int
    local_size: int

    def mesh(self, device: str) -> Any:
        """Return their device mesh."""

    def wishes(self, own: list[int]) -> list[list[int]]:
        """Return the numbers of every rank."""

    def gather_shares(self, share: Tensor) -> Tensor:
        """Return the rows of every rank's tensor, all of one shape, in the order of ranks."""

    def guard(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns; raises RankLost if another rank has gone."""


class Sharding:
    """One divided network. ``padding`` makes the smallest call of it with a set of weights.

    ``shapes``: of trained parameters of which each rank has a share, by name; none of an adapter's, which are whole.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._graph: Tensor | None = None  # the output of a padding call, for backward passes that are not needed here
        self._divided: dict[str, nn.Parameter] = {}
        self._shares: dict[str, nn.Parameter] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.padding: Callable[[Weights], Tensor]

    def divide(self, network: nn.Module, whole: Collection[nn.Parameter], device: str) -> None:
        """Replace every parameter by this rank's share of it, on ``device``, except those in ``whole``."""
        from torch.distributed.fsdp import fully_shard

        mesh = self._ranks.mesh(device)
        for block in [*repeated_blocks(network), network]:
            divided = fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))
            divided.set_force_sum_reduction_for_comms(True)  # terms have been divided by the count of the whole
            divided.set_gradient_divide_factor(1.0)

    def fill(self, network: nn.Module, read: Callable[[str, slice | None], Tensor | None], device: str) -> None:
        """Give a divided network on the meta device its contents, in memory of this rank's shares alone.

        ``read`` returns some rows of the tensor of a name, or with None all of it, and None for one that stays.
        """
        from torch.distributed.tensor import DTensor

        contents: dict[str, Tensor] = {}
        for name, tensor in network.state_dict().items():
            divided = isinstance(tensor, DTensor)
            part = read(name, self._rows(len(tensor)) if divided else None)
            if part is None:
                continue
            part = part.to(device, tensor.dtype)
            contents[name] = part
            if divided:
                layout = {"shape": tensor.shape, "stride": tensor.stride()}
                contents[name] = DTensor.from_local(
                    part, tensor.device_mesh, tensor.placements, run_check=False, **layout
                )
        network.load_state_dict(contents, strict=False, assign=True)

    def shares(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return this rank's shares of divided parameters, which are trained, as parameters on the same memory."""
        self._divided = dict(parameters)
        self._shares = {name: nn.Parameter(_local(parameter)) for name, parameter in parameters.items()}
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        return self._shares

    def whole(self, share: Tensor, shape: torch.Size) -> Tensor:
        """Return the tensor of ``shape`` of which every rank has a share; all ranks call it."""
        rows = -(-shape[0] // self._ranks.local_size)
        padded = share.new_zeros(rows, *shape[1:])
        padded[: len(share)] = share
        return self._ranks.gather_shares(padded)[: shape[0]]

    def whole_parameter(self, parameter: Tensor) -> Tensor:
        """Return a parameter or buffer of the divided network as a whole; all ranks call it."""
        return self.whole(_local(parameter), parameter.shape) if hasattr(parameter, "to_local") else parameter.detach()

    def part(self, whole: Tensor) -> Tensor:
        """Return this rank's share of a tensor."""
        return whole[self._rows(len(whole))]

    def _rows(self, count: int) -> slice:
        """Return the rows of this rank's share of a tensor of ``count`` rows, as FSDP2 divides it."""
        rows = -(-count // self._ranks.local_size)
        first = min(self._ranks.local_rank * rows, count)
        return slice(first, min(first + rows, count))

    def call(self, forward: Callable[[], Tensor], weights: Weights = "current") -> Tensor:
        """Return what ``forward`` returns, which calls the network once; its backward pass is a turn of its own.

        ``weights``: the set of trained weights that is in place. Gradients reach the network's parameters alone, not
        what is given to it.
        """
        self._come_to(FORWARD + (SETS.index(weights) if self._shares else 0))
        output: Tensor = self._ranks.guard(forward)
        if not output.requires_grad:
            return output
        anchor = torch.zeros((), device=output.device, requires_grad=True)
        return _TurnBackward.apply(anchor, self, [output])

    def backward(self, output: Tensor, gradient: Tensor) -> None:
        """Run the backward pass of a call in a turn."""
        # in a thread, since FSDP takes a call within a backward pass for one that recomputes activations
        BackgroundCall(lambda: self._come_to(BACKWARD)).result()
        self._ranks.guard(lambda: torch.autograd.backward(output, gradient))
        self._collect_gradients()

    def settle(self) -> None:
        """Take part in the others' turns until every rank is about to make the same exchange."""
        self._come_to(EXCHANGE)
        self._graph = None  # the weights may change

    def wait(self, done: Callable[[], bool]) -> None:
        """Take part in the others' turns until ``done`` holds."""
        while not done():
            self._round(WAIT)

    def _come_to(self, own: int) -> None:
        while self._round(own) != own:
            pass

    def _round(self, own: int) -> int:
        """Agree on what is done next, and do it unless it is this rank's own wish; return what it is."""
        everyone = self._ranks.wishes([own, self._graph is not None])
        turn = max(wish for wish, _ in everyone)
        if turn == BACKWARD and any(wish != turn and not has_graph for wish, has_graph in everyone):
            self._pad_forward("current", keep=own != turn)
            return FORWARD
        if turn >= FORWARD and turn != own:
            self._pad_forward(SETS[turn - FORWARD], keep=False)
        elif turn == BACKWARD != own:
            self._pad_backward()
        elif turn == WAIT:
            time.sleep(PAUSE_S)
        return turn

    def _pad_forward(self, weights: Weights, *, keep: bool) -> None:
        with torch.set_grad_enabled(keep):
            output = self._ranks.guard(lambda: self.padding(weights))
        self._graph = output if keep else self._graph

    def _pad_backward(self) -> None:
        graph = self._graph
        if graph is None:
            raise AssertionError("a padding backward pass needs a graph")
        self._ranks.guard(lambda: torch.autograd.backward(graph, torch.zeros_like(graph), retain_graph=True))
        self._collect_gradients()

    def _collect_gradients(self) -> None:
        """Add the gradients that the last backward pass left, summed over the ranks, to those of the shares."""
        for name, parameter in self._divided.items():
            if parameter.grad is not None:
                gradient, share = _local(parameter.grad), self._shares[name]
                share.grad = gradient if share.grad is None else share.grad.add_(gradient)
                parameter.grad = None


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


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's share of a divided tensor, on the same memory."""
    local: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]  # reason: it is a DTensor
    return local


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the modules of a network that are divided one by one, inner ones first.

    They are those that its class says stay on one device, or else the members of its lists.
    """
    names = {name for key in ("_no_split_modules", "_repeated_blocks") for name in getattr(network, key, None) or ()}
    lists = [part for part in network.children() if isinstance(part, nn.ModuleList)]
    members = {member for part in lists for member in part}
    blocks = [part for part in network.modules() if (type(part).__name__ in names if names else part in members)]
    return blocks[::-1]
