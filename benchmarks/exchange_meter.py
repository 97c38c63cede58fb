"""Times iterations and exchanges in every process of a run; ``processes.py`` makes it their ``sitecustomize``."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from grpaint.run.loop import Loop

spans: list[tuple[float, float, int]] = []
write_line = Loop._write_line


def write_and_time(loop: Loop) -> None:
    write_line(loop)
    with open(f"times-{loop.world.rank}.jsonl", "a") as file:
        file.write(json.dumps({"end": time.monotonic(), "cpu": time.process_time(), "spans": spans}) + "\n")
    spans.clear()


def device_time() -> float:
    """Return the seconds now, after what the GPU has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


Loop._write_line = write_and_time  # type: ignore[method-assign]
if "RANK" in os.environ:
    from grpaint.parallel.group import Group

    exchange = Group._exchange

    def timed_exchange(group: Group, work: Callable[[], Any], size: int, **options: bool) -> Any:
        start = device_time()
        result = exchange(group, work, size, **options)
        spans.append((start, device_time(), size))
        return result

    Group._exchange = timed_exchange  # type: ignore[method-assign]
