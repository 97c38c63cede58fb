"""The processes that share a run. One process is a world of one, and never loads ``torch.distributed``'s engine.

Loops ask the world; samplers, windows, advantages, surrogates and objectives never see it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

Message = tuple[Any, Mapping[str, Tensor]]  # what JSON can hold, and tensors
T = TypeVar("T")


class World:
    """A world of one process, in which nothing is exchanged; ``parallel/group.py`` has the one of many.

    ``rank`` is this process's number among ``size``, ``local_rank`` its number among the ``local_size`` on its
    machine, ``node`` the machine's number among ``nodes``. ``end`` is how the run has ended, once a rank
    has recorded it. ``on_signal`` is called with a signal that reached the
    processes' agent, and ``on_end`` on rank 0 with the message and the exit code when another rank has ended the run.
    ``phase`` names what the process is doing; errors about a rank that is late or gone quote it. ``restarts`` counts
    how often the processes were started again. ``store`` is the key-value store that the ranks share.
    ``finite_gradient`` says whether this rank's own gradient was finite when it was last summed.
    """

    rank = node = local_rank = restarts = 0
    size = nodes = local_size = 1
    phase = "start"
    finite_gradient = True
    store: Any = None
    bytes_exchanged = 0
    end: dict[str, Any] | None = None
    on_signal: Callable[[int], None] | None = None
    on_end: Callable[[str, int], None] | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def limit(self, seconds: float, name: str = "the limit") -> None:
        """Set how long an exchange may wait for a rank that is late; ``name`` is that of the setting."""

    def share(self, count: int, rank: int | None = None) -> range:
        """Return the consecutive numbers below ``count`` that belong to a rank, by default this one.

        The shares of two ranks differ by at most one number, and some are empty where ``count`` is below ``size``.
        """
        rank = self.rank if rank is None else rank
        length, longer = divmod(count, self.size)
        first = rank * length + min(rank, longer)
        return range(first, first + length + (rank < longer))

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows of every rank's tensors, in the order of ranks, by name, on the CPU; ranks may lack names.

        Names have the order in which the first rank that has any gives them.
        """
        return dict(tensors)

    def gather_values(self, value: Any) -> list[Any]:
        """Return every rank's ``value``, which JSON can hold, in the order of ranks."""
        return [value]

    def gather_on_node(self, message: Message) -> list[Message]:
        """Return on this machine's first rank the message of each of its ranks, and nothing on the others."""
        return [message]

    def scatter_on_node(self, messages: Sequence[Message]) -> Message:
        """Return the message for this rank among those that this machine's first rank gives, one a rank."""
        return messages[0]

    def from_first(self, value: Any) -> Any:
        """Return rank 0's ``value``, which JSON can hold."""
        return value

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on any rank."""
        return flag

    def meanwhile(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, which may wait for other ranks, and take part in their network calls."""
        return work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, which the ranks of a machine do one after another."""
        return work()

    def sharding(self, shard: str) -> Any:
        """Return what divides the network of a run among the ranks of a machine as ``processes.shard`` says.

        None if each has all of it, as with "none" or one rank.
        """
        return None

    @property
    def divides(self) -> bool:
        """Whether the ranks of a machine divide the network that was opened last."""
        return False

    @property
    def shares_weights(self) -> bool:
        """Whether the trained parameters here are shares of them, which the ranks of a machine divide."""
        return False

    def norm(self, own: Tensor) -> Tensor:
        """Return the length of the whole vector. ``own``: of this rank's part if parameters are shares, else of all."""
        return own

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks; a parameter without one on all ranks keeps none."""


ONE = World()
