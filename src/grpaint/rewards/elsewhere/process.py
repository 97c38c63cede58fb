"""A process under an interpreter of its own that computes rewards, started and supervised by this one."""

import contextlib
import os
import signal
import struct
import subprocess
import threading
from collections import deque
from pathlib import Path
from typing import IO, Any

from grpaint.core.errors import RewardError
from grpaint.core.text import one_line, printable
from grpaint.rewards.elsewhere.client import MOST, Failed, read_object

MAIN = Path(__file__).with_name("worker_main.py")
STOP_S = 5.0


class WorkerDied(Failed):
    """The process ended, or was killed because it was late."""


class Process:
    """One life of a worker: ``worker_main.py`` under the interpreter ``python``, with the command-line ``arguments``.

    It has a session of its own, so that Ctrl-C reaches only the run. It ends when its standard input closes, which
    happens when this process ends, however suddenly. ``greeting`` is its first message: Python's version under "ready"
    and a digest of the reward's file. Loading may take ``start_s`` seconds.

    Raises:
        RewardError: if the interpreter cannot be started.
        Failed: if the worker does not load its function.
    """

    def __init__(self, python: str, arguments: list[str], start_s: float) -> None:
        try:
            self._process = subprocess.Popen(
                [python, str(MAIN), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise RewardError(
                f'python = "{python}": cannot be started ({error.strerror}); name an interpreter.'
            ) from error
        self._stderr_lines: deque[str] = deque(maxlen=8)
        self._stderr_reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._stderr_reader.start()
        try:
            self.greeting = self._receive(start_s, 1 << 16, "start")
        except Failed:
            self.kill()
            raise

    def call(self, body: bytes, seconds: float, limit: int) -> list[Any]:
        """The values that the worker's function returns for a batch; its answer may have ``limit`` bytes.

        Raises:
            WorkerDied: if the process ended, or was killed because it took longer than ``seconds``.
            Failed: if the function raised, or returned something other than a list.
        """
        answer = self._receive(seconds, limit, "answer", body)
        if "error" in answer:
            raise Failed(f"it raised {one_line(str(answer['error']), MOST)}{self.stderr_tail()}", retryable=False)
        if not isinstance(answer.get("values"), list):
            raise Failed("its function must return a list, one value an image", retryable=False)
        return answer["values"]

    def _receive(self, seconds: float, limit: int, what: str, body: bytes | None = None) -> dict[str, Any]:
        """Send ``body``, if there is one, and read one answer; ``what`` names the exchange in error messages."""
        late = threading.Event()

        def expire() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        stdin, stdout = _pipes(self._process)
        try:
            if body is not None:
                stdin.write(struct.pack("<Q", len(body)))
                stdin.write(body)
                stdin.flush()
            (length,) = struct.unpack("<Q", _read_exactly(stdout, 8))
            if length > limit:
                self.kill()
                raise WorkerDied(f"its answer is longer than {limit} bytes")
            return read_object(_read_exactly(stdout, length))
        except (OSError, EOFError, ValueError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its pipes close shortly before it ends
                self._process.wait(2)
            self.kill()
            if late.is_set():
                raise WorkerDied(f"it did not {what} within {seconds:g} s and was ended{self.stderr_tail()}") from error
            raise WorkerDied(f"it ended{self._exit_reason()}{self.stderr_tail()}") from error
        finally:
            timer.cancel()

    def _exit_reason(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f" with exit code {code}"
        names = {one.value: one.name for one in signal.Signals}  # a realtime signal has none
        return f" by {names.get(-code, f'signal {-code}')}"

    def _read_stderr(self) -> None:
        """Keep the last lines of standard error."""
        stderr = self._process.stderr
        while stderr and (line := stderr.readline(4096)):
            self._stderr_lines.append(line.decode("utf-8", "replace"))

    def stderr_tail(self) -> str:
        """The end of the worker's standard error in brackets, for error messages; "" if there is none."""
        self._stderr_reader.join(0.2)  # what is still in the pipe
        tail = printable(" ".join("".join(self._stderr_lines).split())[-300:])  # whose end says most
        return f" (it said: {tail})" if tail else ""

    def kill(self) -> None:
        """Kill the process and the processes it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Close the worker's standard input, and kill it if it does not end within ``STOP_S`` seconds."""
        stdin, stdout = _pipes(self._process)
        with contextlib.suppress(OSError):
            stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self.kill()
        self._process.wait()
        stdout.close()
        self._stderr_reader.join(STOP_S)
        if self._process.stderr:
            self._process.stderr.close()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin
    assert process.stdout
    return process.stdin, process.stdout


def _read_exactly(stream: IO[bytes], length: int) -> bytes:
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return body
