"""A lock on what a process writes: it ends with its process, however that ends, and says who holds it.

It is ``flock`` on a small file, which holds the process id, the host and the command of its holder. The file is removed
when the lock is released; a process that was killed leaves the file, but not the lock.
"""

import contextlib
import errno
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from grpaint.core.errors import ConfigError
from grpaint.core.text import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POLL_S, ATTEMPTS = 0.2, 100
_held: set["Lock"] = set()  # by this process
_without_locks: set[int] = set()  # the file systems of which a line has said so


class Locked(ConfigError):
    """Another process holds the lock; nothing was touched."""


class Lock:
    """The lock of ``file``, whose folder must exist, from its making until :meth:`release` or the end of its block.

    A lock that another process holds is refused at once or, if ``wait`` is given, waited for: ``wait`` is called with
    the holder before each further attempt, and may raise. ``subject`` names what is written, and ``way_out`` what to
    do, in the error. Child processes do not inherit it. Where a file system has no locks, a line says so and work goes
    on.

    Raises:
        Locked: another process holds it.
        OSError: ``file`` cannot be made.
    """

    def __init__(self, file: Path, subject: str, way_out: str, wait: Callable[[str], None] | None = None) -> None:
        self.file, self._descriptor = file, -1
        while not self._take():
            holder = _holder(file)
            if wait is None:
                raise Locked(f"{subject}: {holder} writes it, and two at once would mix what they write. {way_out}")
            wait(holder)
            time.sleep(POLL_S)

    def _take(self) -> bool:
        """Take the lock unless it is held; a file that its holder removed meanwhile is opened anew."""
        for _ in range(ATTEMPTS):
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, "there is no flock")
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError as error:  # ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL: some network and FUSE mounts
                _warn_without_locks(self.file, descriptor, error)
                break
            if self._is_named(descriptor):
                break
            os.close(descriptor)
        else:
            raise OSError(errno.ESTALE, "its file is removed again and again", str(self.file))
        self._descriptor = descriptor
        _held.add(self)
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its holder's name
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {socket.gethostname()} {_command()}\n".encode(errors="replace"))
        return True

    def _is_named(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.file.stat())
        except FileNotFoundError:
            return False

    def renamed(self, file: Path) -> None:
        """Take note that the locked file, or a folder above it, has another name now."""
        self.file = file

    def release(self) -> None:
        """Remove the file and let the next process in; without effect once released, and in a forked child."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):  # its folder may be gone, or may no longer be written
            if self._is_named(self._descriptor):
                self.file.unlink()
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        _held.discard(self)
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _command() -> str:
    return printable(shlex.join(["grpaint", *sys.argv[1:]]), 200)


def _holder(file: Path) -> str:
    """Describe the process that holds a lock, as it wrote itself into the file."""
    try:
        pid, host, command = file.read_text(encoding="utf-8", errors="replace").strip().split(" ", 2)
    except (OSError, ValueError):  # it has only just taken the lock, or the disk is full
        return "another process"
    here = "this machine" if host == socket.gethostname() else printable(host, 80)
    return f"process {printable(pid, 20)} on {here} ({printable(command, 200)})"


def _warn_without_locks(file: Path, descriptor: int, error: OSError) -> None:
    """Say, once for each file system, that nothing keeps two processes apart."""
    device = os.fstat(descriptor).st_dev
    if device not in _without_locks:
        _without_locks.add(device)
        logging.getLogger(__name__).warning(
            "grpaint: %s: its file system has no locks (%s); see that no second process writes there.",
            file.parent,
            error.strerror,
        )


def _close_in_child() -> None:
    """Close what a forked child inherited: a lock lasts for as long as any process has its file open."""
    for lock in list(_held):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
