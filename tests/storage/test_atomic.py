"""Atomic writes: a reader sees the old content or the new one, and what is interrupted leaves nothing."""

import errno
import os
import threading
from pathlib import Path

import pytest
import torch

from grpaint.storage.atomic import atomic_folder, write_atomic
from grpaint.storage.files import read_weights, write_weights


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["é\n", "é\n".encode(), lambda stream: stream.write("é\n".encode())])
def test_a_file_is_written_and_replaced(tmp_path, content):
    file = tmp_path / "file.txt"
    for _ in range(2):
        write_atomic(file, content)
        assert file.read_bytes() == b"\xc3\xa9\n"
        assert names(tmp_path) == ["file.txt"]
        file.write_text("old")


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for file in (pipe, link, Path("/dev/null")):
        with pytest.raises(OSError, match="a pipe or a device"):
            write_atomic(file, "x")
    assert names(tmp_path) == ["link", "pipe"]


def test_a_link_to_itself_is_replaced(tmp_path):
    file = tmp_path / "circle"
    file.symlink_to(file)
    write_atomic(file, "x")
    assert file.read_text() == "x"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("x"), KeyboardInterrupt()]
)
def test_an_interrupted_file_leaves_the_old_one_alone(tmp_path, error):
    file = tmp_path / "file.txt"
    file.write_text("old")

    def write(stream):
        stream.write(b"half")
        assert file.read_text() == "old"
        raise error

    with pytest.raises(type(error)):
        write_atomic(file, write)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none/file.txt", "")


def test_content_is_on_the_disk_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor):
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append(("fsync", "folder" if path.is_dir() else path.read_text()))

    def record_replace(self, target):
        steps.append(("rename", target.name))
        return replace(self, target)

    monkeypatch.setattr("grpaint.storage.atomic.os.fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_atomic(tmp_path / "file.txt", "new")
    assert steps == [("fsync", "new"), ("rename", "file.txt"), ("fsync", "folder")]


@pytest.mark.parametrize(
    ("function", "error"), [("open", PermissionError(errno.EACCES, "no")), ("fsync", OSError(errno.EINVAL, "no"))]
)
def test_a_file_system_that_cannot_flush_folders_is_good_enough(tmp_path, monkeypatch, function, error):
    original = getattr(os, function)

    def refuse_folders(path, *args):
        place = Path(os.readlink(f"/proc/self/fd/{path}") if function == "fsync" else path)
        if place.is_dir():
            raise error
        return original(path, *args)

    monkeypatch.setattr(f"grpaint.storage.atomic.os.{function}", refuse_folders)
    write_atomic(tmp_path / "file.txt", "new")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == ["file.txt", "folder"]


def test_a_folder_that_cannot_be_flushed_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor):
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir():
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("grpaint.storage.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomic(tmp_path / "file.txt", "new")
    assert names(tmp_path) == ["file.txt"]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """Both writers have written half of the file when either goes on; one of them wins with a whole file."""
    file, both_inside = tmp_path / "file.txt", threading.Barrier(2)

    def writer(letter):
        def write(stream):
            stream.write(letter * 1000)
            both_inside.wait(10)
            stream.write(letter * 1000)

        write_atomic(file, write)

    threads = [threading.Thread(target=writer, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_bytes() in (b"a" * 2000, b"b" * 2000)
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    folder = tmp_path / "deep/folder"
    with atomic_folder(folder) as temporary:
        (temporary / "a.txt").write_text("a")
        assert temporary.parent == folder.parent
        assert not folder.exists()
    assert names(folder) == ["a.txt"]
    assert names(tmp_path / "deep") == ["folder"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("x"), KeyboardInterrupt()]
)
def test_an_interrupted_folder_leaves_the_old_one_alone(tmp_path, error):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old.txt").write_text("")

    def write():
        with atomic_folder(folder, replace=True) as temporary:
            (temporary / "new.txt").write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert names(folder) == ["old.txt"]
    assert names(tmp_path) == ["folder"]


def test_an_existing_folder_is_replaced_only_on_request(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old.txt").write_text("")
    with pytest.raises(OSError), atomic_folder(folder) as temporary:
        (temporary / "new.txt").write_text("")
    assert names(folder) == ["old.txt"]
    assert names(tmp_path) == ["folder"]
    with atomic_folder(folder, replace=True) as temporary:
        (temporary / "new.txt").write_text("")
    assert names(folder) == ["new.txt"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".folder.part").mkdir()
    (tmp_path / ".folder.part/half.txt").write_text("half")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == []


def test_weights_are_written_atomically(tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    write_weights(file, {"a": torch.zeros(3)}, {"b": "1"})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("grpaint.storage.atomic.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_weights(file, {"a": torch.ones(3)})
    tensors, header = read_weights(file)
    assert (tensors["a"].tolist(), header) == ([0, 0, 0], {"b": "1"})
    assert names(tmp_path) == ["w.safetensors"]


def test_what_a_killed_process_left_is_removed_by_a_later_write(tmp_path):
    file, old, new = tmp_path / "file.txt", tmp_path / ".file.txt.0.part", tmp_path / ".file.txt.1.part"
    for left in (old, new):
        left.write_text("half")
    os.utime(old, (0, 0))
    write_atomic(file, "whole")
    assert names(tmp_path) == [".file.txt.1.part", "file.txt"]  # the new one may be another process's


def test_a_link_stays_a_link_and_long_names_can_be_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere/file.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    write_atomic(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"
    write_atomic(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).read_text() == "text"


def test_an_error_names_the_file_of_the_caller(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(tmp_path / "missing/file.txt", "text")
    assert caught.value.filename == str(tmp_path / "missing/file.txt")
