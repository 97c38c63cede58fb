"""Start the processes of a run on this machine with PyTorch's elastic agent; nothing listens beyond loopback.

The store is a file in a folder of this user, and gloo is bound to the loopback interface.
"""

import contextlib
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]  # not in its list
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from grpaint.core.errors import ProcessesEnded, RunError
from grpaint.parallel.watch import AT_ONCE, END, PREFIX, STOP, STORE, record_end

LOOPBACK = "127.0.0.1"
LEAVE_S = 6  # in which survivors of a death leave, and rank 0 records the status, when there is no further start
AT_ONCE_S = 2  # the same after a second signal
OVER_S = 30  # in which a process must have ended once the run has


class _OneMachine(RendezvousHandler):
    """The rendezvous of a single agent: it has nobody to wait for, and its store is a file."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._round = folder, 0

    def get_backend(self) -> str:
        return "file"

    @property
    def use_agent_store(self) -> bool:
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        self._round += 1
        store = FileStore(str(self._folder / f"agent-{self._round}"), 1)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOOPBACK, 1))  # no worker asks for that port

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "grpaint"

    def shutdown(self) -> bool:
        return True


class _Ranks(LocalElasticAgent):
    """PyTorch's agent; when a rank has died the others are killed, since without it they can do nothing more.

    ``store`` is told how the run has ended when no further start is allowed.
    """

    store: Any = None

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {rank: handler.proc.poll() for rank, handler in self._handlers().items()}
        if deaths := ", ".join(f"rank {rank} by exit code {code}" for rank, code in codes.items() if code):
            if self._remaining_restarts == 0:
                way_out = "What was saved before stays; repeat the command, a run with --resume."
                record_end(self.store, f"processes died, and no further start is allowed ({deaths}). {way_out}", 1, -1)
                self._wait(LEAVE_S)  # while they record the run's status
            self._shutdown(signal.SIGKILL)
        return super()._monitor_workers(worker_group)

    def end_all(self, seconds: float) -> None:
        """End all processes for good: kill those that have not ended by themselves after ``seconds``."""
        self._remaining_restarts = 0  # or it would start again what is killed here
        self._wait(seconds)
        self._shutdown(signal.SIGKILL)

    def _handlers(self) -> dict[int, SubprocessHandler]:
        return self._pcontext.subprocess_handlers if isinstance(self._pcontext, SubprocessContext) else {}

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(handler.proc.poll() is None for handler in self._handlers().values()):
            time.sleep(0.05)


class _Agent(threading.Thread):
    """Runs the agent in a thread of its own, where it installs no signal handlers."""

    def __init__(self, agent: _Ranks) -> None:
        super().__init__(daemon=True)
        self.agent = agent
        self.result: RunResult | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.agent.run()
        except BaseException as error:  # noqa: BLE001 - reason: launch() raises it
            self.error = error


def launch(processes: int, most_restarts: int, words: list[str]) -> None:
    """Run ``grpaint`` with the arguments ``words`` in several processes.

    Processes that die are started again, all of them, up to ``most_restarts`` times. The first Ctrl-C, SIGTERM or
    SIGHUP lets them finish their iteration and save; the second ends them at once.

    Raises:
        ProcessesEnded: a rank ended the run, by an error or after a signal; the first one's message is the run's. Or a
            second signal ended all at once.
        RunError: processes died too often, or could not be started.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the run's own line says what happened
    with tempfile.TemporaryDirectory(prefix="grpaint-") as name:
        folder = Path(name)
        spec = WorkerSpec(
            role="grpaint",
            local_world_size=processes,
            rdzv_handler=_OneMachine(folder),
            entrypoint=sys.executable,
            args=("-m", "grpaint", *words),
            max_restarts=most_restarts,
            monitor_interval=0.2,
            local_addr=LOOPBACK,
        )
        logs = DefaultLogsSpecs(log_dir=str(folder / "logs"))
        thread = _Agent(_Ranks(spec, logs, exit_barrier_timeout=0))
        store = thread.agent.store = PrefixStore(PREFIX, FileStore(str(folder / "store"), processes))
        with _environment(name, processes):
            _pass_signals(thread, store)
        _check_end(store, thread)


@contextlib.contextmanager
def _environment(folder: str, processes: int) -> Iterator[None]:
    """Within the block, set what the processes inherit: the store's folder, loopback for gloo, threads for each."""
    before = dict(os.environ)
    os.environ |= {STORE: folder, "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _pass_signals(thread: _Agent, store: Any) -> None:
    """Run the agent to its end, and tell the processes of a signal.

    Processes that do not end with the run, or at the second signal, are killed.
    """
    signals: list[int] = []

    def receive(number: int, _frame: object) -> None:
        signals.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, receive) for number in numbers}
    try:
        thread.start()
        passed, over = 0, math.inf  # over: since when the run has ended
        while thread.is_alive():
            thread.join(0.2)
            if len(signals) > passed:
                passed = len(signals)
                if passed == 1:
                    store.set(STOP, str(int(signals[0])))
                else:
                    record_end(store, AT_ONCE, 128 + signals[0], -1, at_once=True)
                    thread.agent.end_all(AT_ONCE_S)
                    break
            over = min(over, time.monotonic()) if store.check([END]) else over
            if time.monotonic() > over + OVER_S:
                thread.agent.end_all(0)
                break
        thread.join(5)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_end(store: Any, thread: _Agent) -> None:
    """Raise what ended the run early, if anything did."""
    if store.check([END]):
        end = json.loads(store.get(END))
        raise ProcessesEnded(end["message"], int(end["code"]))
    if thread.error:
        raise RunError(f"the processes could not be started: {thread.error}") from thread.error
