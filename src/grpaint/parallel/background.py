"""Run a function in a background thread and collect its result later."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class BackgroundCall(Generic[T]):
    """Run a function in a daemon thread; :meth:`result` waits, and raises what it raised.

    The thread starts at once. It does not keep the process alive: a function that hangs cannot block the exit.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._finished = threading.Event()
        self._results: list[T] = []
        self._error: BaseException | None = None
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
        threading.Thread(target=self._run, args=(function, torch.get_num_threads(), device), daemon=True).start()

    def _run(self, function: Callable[[], T], threads: int, device: int) -> None:
        try:
            torch.cuda.set_device(device)  # a new thread begins at the first one; of -1 nothing is done
            # a new thread has an OpenMP thread count of its own, and the count changes how sums round
            torch.set_num_threads(threads)
            self._results.append(function())
        except BaseException as error:  # noqa: BLE001 - reason: result() raises it
            self._error = error
        finally:
            self._finished.set()

    @property
    def done(self) -> bool:
        """Whether the function has ended."""
        return self._finished.is_set()

    def error(self) -> BaseException | None:
        """Wait for the function to end, and return what it raised, or None."""
        self._finished.wait()
        return self._error

    def result(self) -> T:
        """Wait for the function to end, and return its result; raises what it raised."""
        error = self.error()
        if error:
            raise error
        return self._results[0]
