"""Run a case in a forked child with limits, and say how it ended."""

import contextlib
import io
import os
import random
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

MEMORY = 12 << 30  # bytes of address space
ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass
class Tally:
    """How many cases of each kind were tried, and those that did not end rightly, with their text."""

    tried: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: str, text: str) -> None:
        """Count a case; one that neither succeeded nor was refused in a line is a fault."""
        self.tried[kind] += 1
        self.ended[outcome] += 1
        if outcome not in ("done", "refused"):
            self.faults.append(f"{kind}: {outcome}: {text}")

    def summary(self) -> str:
        """The counts as a line."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.ended.items()))
        return f"{sum(self.tried.values())} cases: {outcomes}; {len(self.faults)} faults"


def cases(seed: int, minutes: float, most: int) -> Iterator[tuple[int, random.Random]]:
    """Yield the number and the random source of each case, until ``most`` or the time is reached."""
    end = time.monotonic() + 60 * minutes
    for number in range(most):
        if time.monotonic() > end:
            return
        yield number, random.Random(f"{seed}/{number}")


def in_child(case: Callable[[], tuple[str, str]], seconds: float) -> tuple[str, str]:
    """Run ``case`` in a forked child and return its outcome and text.

    The outcome is its own, or "traceback", "hang" (not done within ``seconds``), or "crash" (ended by a signal).
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.setsid()
            os.close(read)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            try:
                outcome, text = case()
            except BaseException:
                outcome, text = "traceback", traceback.format_exc()[-1500:]
            os.write(write, f"{outcome}\0{text}"[:4000].encode("utf-8", "backslashreplace"))
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], seconds)
    answer = os.read(read, 1 << 16).decode("utf-8", "replace") if ready else ""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(read)
    if not ready:
        return "hang", f"not done in {seconds} s"
    if not answer:
        return "crash", f"ended by signal {os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)}"
    outcome, _, text = answer.partition("\0")
    return outcome, text


def command(*words: str) -> tuple[str, str]:
    """Run a command of grpaint in this process; its outcome is "done", "refused", or what is wrong with its end."""
    from grpaint.cli import main

    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    sys.argv, sys.stdout, sys.stderr = ["grpaint", *words], out, err
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    printed = "".join(texts)
    if bad := ESCAPES.search(printed):
        return "unprintable", f"{bad[0]!r} in {printed[:300]!r}"
    if code not in (0, 1, 2):
        return "exit code", f"{code}: {printed[-300:]}"
    lines = [line for line in texts[1].splitlines() if line.startswith("grpaint: ")]
    if code and texts[1] and (len(lines) != 1 or not re.match(r"grpaint: \S", texts[1].splitlines()[-1])):
        return "not a line", texts[1][-500:]
    return ("refused" if code else "done"), printed[-300:]
