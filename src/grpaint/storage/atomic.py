"""Atomic writes: a file or folder is written under a temporary name, and renamed when it is complete.

A reader sees the old content or the new one, never a part. The temporary name lies in the same folder, because a rename
is atomic within one file system only, and begins with a dot.
"""

import contextlib
import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from grpaint.storage.lock import Lock

# what fsync of a folder raises on file systems that do not offer it (some network and FUSE mounts)
_NO_FOLDER_SYNC = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}
ABANDONED_S = 86_400.0  # a temporary file this old was left by a killed process


def write_atomic(file: Path, content: str | bytes | Callable[[BinaryIO], object], *, follow: bool = True) -> None:
    """Write a file, replacing an existing one in a single step that survives a power failure.

    ``content``: text (stored as UTF-8), bytes, or a function that writes to the open binary file it receives. Each call
    has its own temporary name, so processes may write the same file at once: the last rename wins. If writing raises or
    is interrupted, the temporary file is removed and ``file`` stays as it was. What a killed process left is removed by
    a later write. A symbolic link is followed, and a pipe or a device such as /dev/null is never replaced; without
    ``follow``, as for a cache, whose names anybody can foretell, whatever has the name is replaced.

    Raises:
        OSError: if the file cannot be written, for example because its folder is missing or the disk is full.
    """
    target = Path(os.path.realpath(file)) if follow else file
    if follow and target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EEXIST, "a pipe or a device is not replaced by a file", str(file))
    _remove_abandoned(target)
    temporary = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:16]}.part")
    try:
        write_synced(
            temporary, content
        )  # before the rename: else a power failure may leave the new name without content
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(file)  # the name that the caller knows
            error.filename2 = None
        raise
    _sync_folder(target.parent)


def write_synced(file: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a new file through to the disk under its own name, as for the files in an :func:`atomic_folder`.

    Raises:
        OSError: the file exists or cannot be written.
    """
    try:
        with file.open("xb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        error.filename = error.filename or str(file)  # a full disk is told without one
        raise


def _remove_abandoned(file: Path) -> None:
    """Remove temporary files of ``file`` that are more than a day old."""
    with contextlib.suppress(OSError):
        for left in file.parent.glob(f".{glob.escape(file.name[:200])}.*.part"):
            if left.is_file() and time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()


@contextlib.contextmanager
def atomic_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write into, which takes the name ``folder`` when the ``with`` block ends.

    If the block raises or is interrupted, the temporary folder is removed and an existing ``folder`` stays as it was;
    with ``replace`` an existing one is removed just before the rename. The temporary name is always ``.NAME.part``:
    what a killed process left under it may be large, and is removed first. A lock on ``.NAME.lock`` keeps a second
    process from writing the same folder. The files inside are not flushed to the disk here; those that
    :func:`write_atomic` wrote are.

    Raises:
        Locked: another process is writing the folder.
        OSError: if the folder cannot be created or renamed, or exists, is not empty and ``replace`` is not set.
    """
    temporary = folder.with_name(f".{folder.name}.part")
    with contextlib.suppress(FileExistsError):  # a file; the lock's error says so
        folder.parent.mkdir(parents=True, exist_ok=True)
    with Lock(folder.with_name(f".{folder.name}.lock"), str(folder), "Wait until it has ended, or take another name."):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            _sync_folder(temporary)
            if replace and folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
            elif replace:
                folder.unlink(missing_ok=True)
            temporary.rename(folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and str(error.filename).startswith(str(temporary)):
                error.filename = str(folder) + error.filename[len(str(temporary)) :]  # the name that the caller knows
                error.filename2 = None
            raise
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, so that a rename in it survives a power failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows and some network mounts do not open folders, and offer no other way to flush one
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
