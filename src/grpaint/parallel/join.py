"""Join the processes of a run: those of ``--processes``, of torchrun, or of an srun step; without them, a world of one.

How a run ends is told through the store first: the first rank that fails writes its message and exit code there, the
others leave without a word.
"""

import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpaint.core.errors import ConfigError, ProcessesEnded, RunError
from grpaint.parallel.watch import END, EVERY_S, PREFIX, STORE, Watch, record_end, run_end
from grpaint.parallel.world import ONE, World

if TYPE_CHECKING:
    from grpaint.parallel.group import Group, Place

JOIN_S = 300  # how long a rank waits for the others to start
WAIT_S = 3600  # how long it waits for them afterwards, unless the command sets another limit
DEATH_S = 3  # in which our agent ends this process if another one has died
PORT = 20_000  # the first of those that an srun step without MASTER_PORT may take

_groups: list[World] = []  # the group of this process, while it has one; before it has formed, what will be one


def is_rank() -> bool:
    """Return whether this process was started as one of many."""
    return STORE in os.environ or _count("WORLD_SIZE") > 1 or _slurm()


def _slurm() -> bool:
    return "WORLD_SIZE" not in os.environ and _count("SLURM_STEP_NUM_TASKS") > 1


def _count(name: str) -> int:
    text = os.environ.get(name, "1")
    if not text.isdecimal():
        raise ConfigError(f"{name} = {text:.40}: not a whole number; unset it, or start with torchrun.")
    return int(text)


@contextlib.contextmanager
def join_group() -> Iterator[World]:
    """Form the process group for the block, if this process is one of many; the others' ends end this one too.

    Raises:
        ConfigError: the environment announces a group and does not say which rank this is, or where the others are.
        RunError: the group did not form.
        ProcessesEnded: without a message: the run had ended when this process was started again.
    """
    if not is_rank():
        yield ONE
        return
    world = _form(_place(), _address())
    world.limit(WAIT_S, "the limit in seconds")
    try:
        if not world.first:
            logging.getLogger("grpaint").setLevel(logging.ERROR)  # rank 0 has said it
        with Watch(world):
            yield world
    finally:
        import torch.distributed as dist

        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


def _place() -> "Place":
    """Read from the environment where this process stands."""
    from grpaint.parallel.group import Place

    slurm = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    names = slurm if _slurm() else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    for name in names[:2]:
        if name not in os.environ:
            raise ConfigError(
                f"{names[1]} = {os.environ.get(names[1])}, and {name} is not set: no group of processes can form. "
                "Start with --processes, torchrun or srun, or unset it."
            )
    rank, size = _count(names[0]), _count(names[1])
    if rank >= size:
        raise ConfigError(f"{names[0]} = {rank}, and {names[1]} = {size}: ranks count from 0; unset both.")
    local_rank = _count(names[2]) if names[2] in os.environ else 0
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "") if _slurm() else os.environ.get("LOCAL_WORLD_SIZE", "")
    if "," in tasks:
        raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE = {tasks}: start equally many processes on every machine.")
    local_size = int(tasks.partition("(")[0].partition(",")[0] or size)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if size % local_size:
        raise ConfigError(f"{size} processes on machines of {local_size}: start equally many on every machine.")
    return Place(rank, size, local_rank, local_size, rank // local_size, size // local_size, restarts)


def _address() -> tuple[str, int]:
    """Return the host and port of rank 0's store; empty under our own agent, whose store is a file."""
    if STORE in os.environ:
        return "", 0
    host, port = os.environ.get("MASTER_ADDR", ""), _count("MASTER_PORT") if "MASTER_PORT" in os.environ else 0
    if _slurm():
        host = host or _first_host(os.environ.get("SLURM_STEP_NODELIST", ""))
        port = port or PORT + _count("SLURM_JOB_ID") % 20_000
    if not host or not port:
        raise ConfigError(
            "WORLD_SIZE is set, and MASTER_ADDR or MASTER_PORT is not: no group of processes can form. Start with "
            "--processes, torchrun or srun, or unset WORLD_SIZE."
        )
    return host, port


def _first_host(nodes: str) -> str:
    try:
        result = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    except OSError:
        return nodes if "[" not in nodes else ""
    return result.stdout.partition("\n")[0].strip()


def _form(place: "Place", address: tuple[str, int]) -> "Group":
    import torch
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # not in its list

    from grpaint.parallel.group import Group

    host, port = address
    store = None if host else _own_store(place)
    seconds = _count("GRPAINT_JOIN_S") if "GRPAINT_JOIN_S" in os.environ else JOIN_S
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    try:
        store = store or _tcp_store(place, host, port, seconds)
        store.set_timeout(timedelta(seconds=seconds))
        own = PrefixStore(PREFIX, store)
        if own.check([END]):  # started again after an end that no restart mends
            raise ProcessesEnded("", 0)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore(f"group/{place.restarts}", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=seconds),
        )
        world = Group(place, own)
    except (RuntimeError, ValueError, OSError) as error:
        if not host:
            time.sleep(DEATH_S)
        raise RunError(
            f"rank {place.rank} of WORLD_SIZE = {place.size}: the others did not join within {seconds:g} s"
            f"{f' at {host}:{port}' if host else ''} ({str(error).splitlines()[0][:200]}). Start all of them, or unset "
            "WORLD_SIZE."
        ) from error
    _groups[:] = [world]
    return world


def _own_store(place: "Place") -> Any:
    """Return the store of our own agent, a file; from here on the agent's process prints this one's errors."""
    from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]  # not in its list

    store = FileStore(str(Path(os.environ[STORE]) / "store"), place.size)
    forming = World()
    forming.rank, forming.store = place.rank, PrefixStore(PREFIX, store)
    _groups[:] = [forming]
    return store


def _tcp_store(place: "Place", host: str, port: int, seconds: int) -> Any:
    """Return the store that rank 0, or torchrun's agent, opens at a port.

    Raises:
        OSError: nothing listens there.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its list

    master = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    end = time.monotonic() + seconds
    while not master:  # PyTorch's own wait for the port ends with a report of its stack
        try:
            with socket.create_connection((host, port), timeout=max(1, end - time.monotonic())):
                break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(EVERY_S)
    return TCPStore(host, port, place.size, master, timedelta(seconds=seconds))


def announce(message: str, code: int, *, lost: bool) -> int | None:
    """Record in the store how the run ends; return this process's exit code, or None if it prints the message itself.

    It prints it outside a group, and under torchrun or srun where no other rank has recorded an end before. ``lost``:
    the error is that another rank is gone. If that rank recorded why, this one ends quietly; if not, it died, and our
    agent starts all of them again.
    """
    if not _groups:
        return None
    world, agent = _groups[0], STORE in os.environ
    if lost:
        return 0 if run_end(world) else 1 if agent else None
    try:
        first = record_end(world.store, message, code, world.rank)
    except RuntimeError:
        return None
    if world.first and _slurm():  # the store goes with this process: let the others read it first
        time.sleep(4 * EVERY_S)
    if agent:
        return 0  # the agent's process prints it; any other code would start all again
    return None if first else code
