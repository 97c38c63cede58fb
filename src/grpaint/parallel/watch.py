"""A thread in each process of a run that passes on signals to the run, and ends the process when the run has ended."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Self

EVERY_S, GRACE_S = 0.5, 3.0
STOP = "stop"  # the key of a signal that the agent's process received
END = "ended"  # the key of how the run ended
PREFIX = "grpaint"  # of our own keys in the store
STORE = "GRPAINT_STORE"  # in the environment: the folder of the stores, set by our own agent


AT_ONCE = "stopped at once; what was saved before stays."


def run_end(world: Any) -> dict[str, Any] | None:
    """Return how the run has ended, ``message`` and ``code``, if a rank has recorded it."""
    try:
        if world.end is None and world.store.check([END]):
            world.end = json.loads(world.store.get(END))
    except (RuntimeError, ValueError):  # the store went with the process that held it
        pass
    return world.end


def record_end(store: Any, message: str, code: int, rank: int, *, at_once: bool = False) -> bool:
    """Record in the store how the run ends; return whether this was the first to do so, and so the run's end.

    ``at_once``: the processes end without the seconds of grace.

    Raises:
        RuntimeError: the store is gone, or cannot be written.
    """
    text = json.dumps({"message": message, "code": code, "rank": rank, "at_once": at_once})
    return bool(store.compare_set(END, "", text).decode() == text)


class Watch:
    """Within its block a thread publishes where this rank is, and looks for a signal and for the run's end.

    A process that is busy elsewhere when the run ends, as with a slow reward, is ended after ``GRACE_S`` seconds. The
    death of our own agent's process is a SIGTERM. Where no ``on_signal`` takes a signal, it ends the run at once.
    """

    def __init__(self, world: Any) -> None:
        self._world, self._over = world, threading.Event()
        self._parent = os.getppid()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        position = ""
        while not self._over.wait(EVERY_S):
            with contextlib.suppress(RuntimeError):  # the store went with the process that held it
                if position != (now := self._world.position()):
                    position = now
                    self._world.store.set(f"at/{self._world.restarts}/{self._world.rank}", now)
                self._look()

    def _look(self) -> None:
        if number := self._signal():
            if self._world.on_signal:
                self._world.on_signal(number)
            else:  # nothing is under way that could be saved
                record_end(self._world.store, AT_ONCE, 128 + number, self._world.rank, at_once=True)
        end = run_end(self._world)
        if end and not self._over.wait(0 if end["at_once"] else GRACE_S):
            callback: Callable[[str, int], None] | None = self._world.on_end
            if callback and self._world.first:
                callback(end["message"], end["code"])
            os._exit(0 if STORE in os.environ else end["code"])

    def _signal(self) -> int:
        """Return the signal that our own agent's process received; SIGTERM if it has died, 0 before.

        Rank 0 alone takes the agent's signal and tells the user; the others learn of it after their iteration. If they
        took it too, they could end the run before rank 0 has looked, and the user would be told of no stop.
        """
        if self._world.first and self._world.store.check([STOP]):
            return int(self._world.store.get(STOP))
        return signal.SIGTERM if STORE in os.environ and os.getppid() != self._parent else 0
