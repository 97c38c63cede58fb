"""Start the processes of a run on this machine with PyTorch's elastic agent; nothing listens beyond loopback.

The store is a file in a folder of this user, and gloo is bound to the loopback interface.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]  # not in its list
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from grpaint.core.errors import ProcessesEnded, RunError
from grpaint.parallel.watch import END, PREFIX, STOP, STORE

LOOPBACK = "127.0.0.1"


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


class _Agent(threading.Thread):
    """Runs the agent in a thread of its own, where it installs no signal handlers."""

    def __init__(self, agent: LocalElasticAgent) -> None:
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
        thread = _Agent(LocalElasticAgent(spec, logs, exit_barrier_timeout=0))
        store = PrefixStore(PREFIX, FileStore(str(folder / "store"), processes))
        with _environment(name, processes):
            signals = _pass_signals(thread, store)
        _check_end(store, thread, signals)


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


def _pass_signals(thread: _Agent, store: Any) -> list[int]:
    """Run the agent to its end, and tell the processes of a signal; return the signals that came."""
    signals: list[int] = []

    def receive(number: int, _frame: object) -> None:
        signals.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, receive) for number in numbers}
    try:
        thread.start()
        passed = 0
        while thread.is_alive():
            thread.join(0.2)
            if len(signals) > passed:
                passed = len(signals)
                if passed == 1:
                    store.set(STOP, str(int(signals[0])))
                else:
                    thread.agent._remaining_restarts = 0  # or it would start again what is killed here
                    thread.agent._shutdown(signal.SIGKILL)
                    thread.join(5)
                    break
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return signals


def _check_end(store: Any, thread: _Agent, signals: list[int]) -> None:
    """Raise what ended the run early, if anything did."""
    if len(signals) > 1:
        raise ProcessesEnded("stopped at once; what was saved before stays.", 128 + signals[0])
    if store.check([END]):
        end = json.loads(store.get(END))
        raise ProcessesEnded(end["message"], int(end["code"]))
    if thread.error:
        raise RunError(f"the processes could not be started: {thread.error}") from thread.error
    if thread.result and thread.result.is_failed():
        deaths = ", ".join(
            f"rank {rank} by exit code {failure.exitcode}" for rank, failure in thread.result.failures.items()
        )
        raise RunError(
            f"processes died, and --max-restarts allows no further start ({deaths}). The last checkpoint stays; "
            "continue with --resume."
        )
