"""A world of many processes, over PyTorch's own process groups: gloo on the CPU, NCCL for gradients on CUDA.

Tables and decisions travel as safetensors and JSON through gloo; nothing is pickled.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from grpaint.core.errors import RankLost
from grpaint.parallel.background import BackgroundCall
from grpaint.parallel.buckets import GradientRow, buckets
from grpaint.parallel.messages import LENGTH, pack, unpack
from grpaint.parallel.sharding import Sharding
from grpaint.parallel.world import Message, World

SHORT = 8192  # bytes of a message's start that travel with its length
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a process stands: its rank, and its machine's."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    nodes: int
    restarts: int = 0


class Group(World):
    """The world of a process group that has been formed; ``store`` is its key-value store.

    Every exchange must be made by all ranks in the same order. It ends with :class:`RankLost` after the limit that
    :meth:`limit` set, or when another rank is gone.
    """

    def __init__(self, place: Place, store: Any) -> None:
        self.rank, self.size, self.restarts = place.rank, place.size, place.restarts
        self.local_rank, self.local_size = place.local_rank, place.local_size
        self.node, self.nodes = place.node, place.nodes
        self.store, self._limit_s, self._limit_name = store, 0.0, ""
        self.exchanges = self.node_exchanges = 0
        self._gradient_row = GradientRow()
        # a group of its own for exchanges from other threads, whose order to the main thread's is not fixed
        nodes = [range(n * place.local_size, (n + 1) * place.local_size) for n in range(place.nodes)]
        self.node_ranks = nodes[place.node]
        self.node_group = [dist.new_group(list(ranks), backend="gloo") for ranks in nodes][place.node]
        # and one for a network that the ranks of a machine divide
        self.shard_group = [dist.new_group(list(ranks)) for ranks in nodes][place.node]
        peers = [range(n, place.size, place.local_size) for n in range(place.local_size)]
        self.peer_group = [dist.new_group(list(ranks)) for ranks in peers][place.local_rank]
        self._sharding: Sharding | None = None

    def limit(self, seconds: float, name: str = "the limit") -> None:
        """Set how long an exchange may wait for a rank that is late; ``name`` is that of the setting."""
        self._limit_s, self._limit_name = seconds, name
        for group in (dist.group.WORLD, self.node_group, self.shard_group, self.peer_group):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)

    def sharding(self, shard: str) -> Any:
        self._sharding = Sharding(self) if shard != "none" and self.local_size > 1 else None
        return self._sharding

    def mesh(self, device: str) -> Any:
        """Return the device mesh of this machine's ranks."""
        return DeviceMesh.from_group(self.shard_group, device)

    def wishes(self, own: list[int]) -> list[list[int]]:
        """Return the numbers of every rank of this machine; all give equally many."""
        every = [torch.empty(len(own), dtype=torch.int64) for _ in self.node_ranks]
        tensor = torch.tensor(own)
        self._exchange(lambda: dist.all_gather(every, tensor, self.shard_group), tensor.nbytes, on_node=True)
        return [one.tolist() for one in every]

    def gather_shares(self, share: Tensor) -> Tensor:
        every = [torch.empty_like(share) for _ in self.node_ranks]
        self._exchange(lambda: dist.all_gather(every, share, self.shard_group), share.nbytes, on_node=True)
        return torch.cat(every)

    @property
    def divides(self) -> bool:
        return self._sharding is not None

    @property
    def shares_weights(self) -> bool:
        return bool(self._sharding and self._sharding.shapes)

    def norm(self, own: Tensor) -> Tensor:
        if not self.shares_weights:
            return own
        parts = self.gather_values([self.local_rank, own.item()])
        lengths = torch.tensor([dict(parts)[rank] for rank in range(self.local_size)], dtype=torch.float64)
        return lengths.norm().to(own)

    def guard(self, work: Callable[[], T]) -> T:
        """Do work in which a divided network's parameters are gathered.

        Raises:
            RankLost: another rank has gone meanwhile.
        """
        start = time.monotonic()
        try:
            return work()
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise self._lost(start, on_node=True) from error
            raise

    def meanwhile(self, work: Callable[[], T]) -> T:
        if self._sharding is None or threading.current_thread() is not threading.main_thread():
            return work()
        with_grad = torch.is_grad_enabled()

        def in_thread() -> T:
            with torch.set_grad_enabled(with_grad):
                return work()

        call = BackgroundCall(in_thread)
        self._sharding.wait(lambda: call.done)
        return call.result()

    def in_turn(self, work: Callable[[], T]) -> T:
        for rank in range(self.local_size):
            if rank == self.local_rank:
                result = work()
            self.gather_values(None)
        return result

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # a file of safetensors sorts its names
        parts = [unpack(part) for part in self._gather_bytes(pack((list(tensors), tensors)))]
        names = dict.fromkeys(name for order, _ in parts for name in order)
        return {name: torch.cat([part[name] for _, part in parts if name in part]) for name in names}

    def gather_values(self, value: Any) -> list[Any]:
        return [json.loads(part) for part in self._gather_bytes(json.dumps(value).encode())]

    def from_first(self, value: Any) -> Any:
        return self.gather_values(value if self.first else None)[0]

    def any(self, flag: bool) -> bool:
        return any(self.gather_values(flag))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        if not parameters:
            return
        if self._sharding:  # gradients may still come from the calls of others
            self._sharding.settle()
        group = self.peer_group if self.shares_weights else None  # a machine's ranks have summed their shares
        ranks = nn.Parameter(torch.zeros(len(parameters), device=parameters[0].device))  # that have each gradient
        ranks.grad = torch.tensor([float(p.grad is not None) for p in parameters], device=ranks.device)
        self.finite_gradient = True
        for bucket in buckets([*parameters, ranks]):
            flat = self._gradient_row.fill(bucket)
            self.finite_gradient &= bool(torch.stack(flat.aminmax()).isfinite().all())  # quicker than each number
            self._exchange(lambda flat=flat: dist.all_reduce(flat, group=group), flat.nbytes)  # type: ignore[misc]
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(part.view_as(parameter))
        for parameter, count in zip(parameters, ranks.grad.tolist(), strict=True):
            parameter.grad = parameter.grad if count else None

    def gather_on_node(self, message: Message) -> list[Message]:  # a thread beside the main one may call it
        first, *others = self.node_ranks
        if self.local_rank:
            self._send([(first, message)])
            return []
        return [message, *self._receive(others)]

    def scatter_on_node(self, messages: Sequence[Message]) -> Message:  # a thread beside the main one may call it
        first, *others = self.node_ranks
        if self.local_rank:
            return self._receive([first])[0]
        self._send(list(zip(others, messages[1:], strict=True)))
        return messages[0]

    def _send(self, messages: Sequence[tuple[int, Message]]) -> None:
        """Send ranks of this machine a message each, its length before it."""
        contents = []
        for rank, message in messages:
            content = pack(message)
            contents.append((rank, torch.tensor([len(content)])))
            contents.append((rank, torch.frombuffer(content, dtype=torch.uint8)))

        def send() -> None:
            for rank, content in contents:
                self._wait(dist.isend(content, rank, self.node_group))

        self._exchange(send, sum(content.nbytes for _, content in contents), on_node=True)

    def _receive(self, ranks: Sequence[int]) -> list[Message]:
        def receive() -> list[Message]:
            messages: list[Message] = []
            for rank in ranks:
                length = torch.empty(1, dtype=torch.int64)
                self._wait(dist.irecv(length, rank, self.node_group))
                content = torch.empty(int(length), dtype=torch.uint8)
                self._wait(dist.irecv(content, rank, self.node_group))
                messages.append(unpack(bytes(content.numpy())))
            return messages

        return self._exchange(receive, 0, on_node=True)

    def _wait(self, work: Any) -> None:
        work.wait(timedelta(seconds=self._limit_s))  # the group's own limit is not that of single messages

    def _gather_bytes(self, content: bytes | bytearray) -> list[bytes]:
        """Return every rank's bytes, of any length; a short content travels with its length."""
        start = torch.zeros(LENGTH + SHORT, dtype=torch.uint8)
        start[:LENGTH] = torch.tensor([len(content)]).view(torch.uint8)
        if content:
            start[LENGTH:][: len(content)] = torch.frombuffer(bytearray(content[:SHORT]), dtype=torch.uint8)
        starts = self._gather_equal(start)
        lengths = [int(one[:LENGTH].view(torch.int64)) for one in starts]
        parts = [one[LENGTH:] for one in starts]
        if max(lengths) > SHORT:
            rest = torch.zeros(max(lengths) - SHORT, dtype=torch.uint8)
            if len(content) > SHORT:
                rest[: len(content) - SHORT] = torch.frombuffer(bytearray(content[SHORT:]), dtype=torch.uint8)
            parts = [torch.cat(pair) for pair in zip(parts, self._gather_equal(rest), strict=True)]
        return [bytes(part[:length].numpy()) for part, length in zip(parts, lengths, strict=True)]

    def _gather_equal(self, own: Tensor) -> list[Tensor]:
        """Return every rank's tensor; all have the same shape."""
        every = [torch.empty_like(own) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(every, own), own.nbytes)
        return every

    def _exchange(self, work: Callable[[], T], size: int, *, on_node: bool = False) -> T:
        """Do one exchange, of ``size`` bytes from this rank, with all ranks or those of this machine.

        Raises:
            RankLost: it failed; the message names the ranks that are behind, and what they were doing.
        """
        if self._sharding and not on_node:
            self._sharding.settle()
        self.exchanges += not on_node
        self.node_exchanges += on_node
        self.bytes_exchanged += size
        start = time.monotonic()
        try:
            return work()
        except (RuntimeError, ValueError) as error:
            raise self._lost(start, on_node=on_node) from error

    def _lost(self, start: float, *, on_node: bool) -> RankLost:
        """Return the error of an exchange that began at ``start`` and failed."""
        waited = time.monotonic() - start
        late = waited >= 0.99 * self._limit_s
        return RankLost(self._missing(waited, on_node=on_node, late=late), late=late)

    def position(self) -> str:
        """Return how many exchanges this rank has begun, with all ranks and on its machine, and its phase."""
        return f"{self.exchanges} {self.node_exchanges} {self.phase}"

    def _missing(self, waited: float, *, on_node: bool, late: bool) -> str:
        """Describe the ranks that have begun fewer exchanges than this one, by what they last published."""
        time.sleep(1.2)  # until each rank has published where it is
        behind = []
        for rank in self.node_ranks if on_node else range(self.size):
            key = f"at/{self.restarts}/{rank}"
            try:
                position = self.store.get(key).decode() if self.store.check([key]) else "0 0 "
                *counts, phase = position.split(" ", 2)
                own = self.node_exchanges if on_node else self.exchanges
                if rank != self.rank and int(counts[on_node]) < own:
                    behind.append(f"rank {rank} (node {rank // self.local_size}), last in the phase {phase or 'start'}")
            except (RuntimeError, ValueError):  # the store is gone with rank 0's agent
                continue
        reason = f"It took longer than {self._limit_name} = {self._limit_s:g}" if late else "A rank has died"
        return (
            f"rank {self.rank} waited {waited:.0f} s in the phase {self.phase} for "
            f"{', '.join(behind) or 'another rank, which is gone'}. {reason}; continue with --resume."
        )
