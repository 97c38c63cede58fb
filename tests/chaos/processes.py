"""Commands as processes that are forked from this one, whose imports are done: cheap enough to kill by the hundred."""

import contextlib
import fcntl
import os
import signal
import stat
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

from grpaint import cli
from grpaint.parallel.parent import stop_with_parent

_FORKING = threading.Lock()  # filelock refuses a fork while another thread forks


@dataclass
class Child:
    """A forked command; ``code`` is its exit code once it has ended, or minus the signal that ended it."""

    pid: int
    code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float) -> int | None:
        """Wait until it has ended; return its exit code, or None if that took longer, and then it is killed."""
        end = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.002)
        code = self.code
        self.kill()
        return code

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send(self, number: int, *, group: bool = False) -> bool:
        """Send a signal, to its children too with ``group``; return whether it was still there."""
        if self.ended():
            return False
        (os.killpg if group else os.kill)(self.pid, number)
        return True


def fork(words: list[str], folder: Path, log: Path) -> Child:
    """Run ``grpaint WORDS`` in ``folder``, in a process group of its own; what it prints is added to ``log``."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.chdir(folder)
        with log.open("ab") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        _command(words)
    return Child(pid)


def _command(words: list[str]) -> NoReturn:
    """Run a command in this forked process, and end it."""
    code: Any = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        sys.argv = ["grpaint", *words]
        sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))  # noqa: SIM115 - reason: they are those of a whole process
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # nobody reads it any more
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)


def _pipes_to_write() -> list[int]:
    """The descriptors, standard ones aside, that are the writing ends of pipes."""
    out = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            is_pipe = stat.S_ISFIFO(os.fstat(int(name)).st_mode)
            if is_pipe and int(name) > 2 and fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                out.append(int(name))
    return out


def run(words: list[str], *, stdin: IO[bytes], **_: object) -> SimpleNamespace:
    """Do what ``compare`` does by ``subprocess.run``: wait for ``python -c PROGRAM WORDS``, here a fork."""
    reading, writing = os.pipe()
    with _FORKING:
        pid = os.fork()
    if not pid:
        os.dup2(stdin.fileno(), 0)
        os.dup2(writing, 2)
        null = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, *_pipes_to_write()):  # a program that is executed anew inherits no end of another's pipe
            os.dup2(null, descriptor)
        stop_with_parent()
        _command(words[3:])
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as stream:
        errors = stream.read()
    return SimpleNamespace(returncode=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stderr=errors)
