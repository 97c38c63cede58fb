"""A process under an interpreter of its own that answers questions, started and watched by us."""

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
from grpaint.rewards.elsewhere.client import Failed, printable, read_object

MAIN = Path(__file__).with_name("worker_main.py")
STOP_S = 5.0


class Died(Failed):
    """The process ended, or was ended for being late."""


class Process:
    """One life of a worker: ``worker_main.py`` under ``python``, told what to run by ``words``.

    It has a session of its own, so that Ctrl-C reaches the run alone; it ends when its standard input closes, which
    the end of this process, however sudden, brings about.
    """

    def __init__(self, python: str, words: list[str], start_s: float) -> None:
        try:
            self._process = subprocess.Popen(
                [python, str(MAIN), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise RewardError(
                f'python = "{python}": cannot be started ({error.strerror}); name an interpreter.'
            ) from error
        self._tail: deque[str] = deque(maxlen=8)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.about = self._answer(start_s, 1 << 16, "start")

    def ask(self, body: bytes, seconds: float, limit: int) -> list[Any]:
        """The values that the worker's function gives.

        Raises:
            Died: where the process ended, or had to be.
            Failed: where the function raised, or the answer is none.
        """
        answer = self._answer(seconds, limit, "answer", body)
        if "error" in answer:
            raise Failed(f"it raised {printable(str(answer['error']))}{self.tail()}", retryable=False)
        if not isinstance(answer.get("values"), list):
            raise Failed("its function must give a list, one value an image", retryable=False)
        return answer["values"]

    def _answer(self, seconds: float, limit: int, what: str, body: bytes | None = None) -> dict[str, Any]:
        late = threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        stdin, stdout = _pipes(self._process)
        try:
            if body is not None:
                stdin.write(struct.pack("<Q", len(body)))
                stdin.write(body)
                stdin.flush()
            (length,) = struct.unpack("<Q", _whole(stdout, 8))
            if length > limit:
                self.kill()
                raise Died(f"its answer is longer than {limit} bytes")
            return read_object(_whole(stdout, length))
        except (OSError, EOFError, ValueError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its pipes close a little before it has ended
                self._process.wait(2)
            self.kill()
            if late.is_set():
                raise Died(f"it did not {what} within {seconds:g} s and was ended{self.tail()}") from error
            raise Died(f"it ended{self._how()}{self.tail()}") from error
        finally:
            timer.cancel()

    def _how(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f" with exit code {code}"
        return f" by {signal.Signals(-code).name}"

    def _listen(self) -> None:
        """Keep the last lines of standard error."""
        stderr = self._process.stderr
        while stderr and (line := stderr.readline(4096)):
            self._tail.append(line.decode("utf-8", "replace"))

    def tail(self) -> str:
        """What it said last on standard error."""
        self._listener.join(0.2)  # what is still in the pipe
        tail = printable(" ".join("".join(self._tail).split())[-300:])
        return f" (it said: {tail})" if tail else ""

    def kill(self) -> None:
        """End it and what it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Close its standard input, and end it where that is not enough."""
        stdin, stdout = _pipes(self._process)
        with contextlib.suppress(OSError):
            stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self.kill()
        self._process.wait()
        stdout.close()
        self._listener.join(STOP_S)
        if self._process.stderr:
            self._process.stderr.close()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin
    assert process.stdout
    return process.stdin, process.stdout


def _whole(stream: IO[bytes], length: int) -> bytes:
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return body
