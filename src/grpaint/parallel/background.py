"""Work done in a thread of its own; its result, or its error, comes where it is asked for."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Later(Generic[T]):
    """Starts ``work`` at once. The thread ends with the process: one that hangs holds nobody up."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._over = threading.Event()
        self._results: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._go, args=(work, torch.get_num_threads()), daemon=True).start()

    def _go(self, work: Callable[[], T], threads: int) -> None:
        torch.set_num_threads(threads)  # OpenMP counts a new thread's own, and sums depend on how many there are
        try:
            self._results.append(work())
        except BaseException as error:  # noqa: BLE001 - reason: result() raises it
            self._error = error
        finally:
            self._over.set()

    def error(self) -> BaseException | None:
        """Wait for the work, and give what it raised."""
        self._over.wait()
        return self._error

    def result(self) -> T:
        """Wait for the work; raises what it raised."""
        error = self.error()
        if error:
            raise error
        return self._results[0]
