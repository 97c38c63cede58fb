"""A lock ends with its process, names its holder, and is not inherited."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from grpaint.core.errors import ConfigError
from grpaint.storage import lock
from grpaint.storage.atomic import atomic_folder
from grpaint.storage.lock import Lock, Locked

HOLDER = """
import sys, time
from pathlib import Path
from grpaint.storage.lock import Lock
sys.argv = ["grpaint", "train", "--name", "a\\nb"]
with Lock(Path(sys.stdin.readline().strip()), "x", ""):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / ".lock"


@pytest.fixture
def holder(file):
    """Another process that holds the lock of ``file``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(f"{file}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_by_the_name_of_the_first(file, holder):
    with pytest.raises(Locked) as caught:
        Lock(file, "runs/it", "Take another --name.")
    assert isinstance(caught.value, ConfigError)
    assert str(caught.value) == (
        f"runs/it: process {holder.pid} on this machine (grpaint train --name 'a\\nb') writes it, and two at once "
        "would mix what they write. Take another --name."
    )


def test_a_lock_ends_with_a_process_that_is_killed(file, holder):
    holder.kill()
    holder.wait()
    assert file.is_file()
    with Lock(file, "x", ""):
        assert file.read_text().startswith(f"{os.getpid()} ")
    assert not file.exists()


def test_a_lock_is_waited_for(file, holder, monkeypatch):
    monkeypatch.setattr(lock, "POLL_S", 0.001)
    holders = []

    def wait(text):
        holders.append(text)
        if len(holders) == 3:
            holder.kill()

    Lock(file, "x", "", wait).release()
    assert len(holders) >= 3
    assert set(holders) <= {f"process {holder.pid} on this machine (grpaint train --name 'a\\nb')"}


def test_a_wait_may_be_given_up(file, holder):
    def wait(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Lock(file, "x", "", wait)


def test_a_released_lock_can_be_taken_and_leaves_no_file(file):
    for _ in range(2):
        mine = Lock(file, "x", "")
        with pytest.raises(Locked):
            Lock(file, "x", "")
        mine.release()
        mine.release()
        assert not file.exists()


def test_a_forked_child_does_not_keep_the_lock(file):
    mine = Lock(file, "x", "")
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    mine.release()
    Lock(file, "x", "").release()  # the child still lives
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_forked_child_that_releases_does_not_let_others_in(file):
    with Lock(file, "x", "") as mine:
        pid = os.fork()
        if not pid:
            mine.release()
            os._exit(0)
        os.waitpid(pid, 0)
        assert file.is_file()
        with pytest.raises(Locked):
            Lock(file, "x", "")


def test_an_executed_child_does_not_keep_the_lock(file):
    mine = Lock(file, "x", "")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    mine.release()
    Lock(file, "x", "").release()
    child.kill()
    child.wait()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_without_locks_a_line_says_so_once_and_work_goes_on(file, code, monkeypatch, caplog):
    def refuse(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "_without_locks", set())
    for _ in range(2):
        with Lock(file, "x", ""):
            pass
    (record,) = caplog.records
    assert record.getMessage() == (
        f"grpaint: {file.parent}: its file system has no locks ({os.strerror(code)}); see that no second process "
        "writes there."
    )


def test_a_system_without_fcntl_is_told_too(file, monkeypatch, caplog):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "_without_locks", set())
    Lock(file, "x", "").release()
    assert "no locks (there is no flock)" in caplog.text


def test_the_lock_of_a_folder_that_is_renamed_goes_with_it(tmp_path):
    (tmp_path / "old").mkdir()
    mine = Lock(tmp_path / "old/.lock", "x", "")
    (tmp_path / "old").rename(tmp_path / "new")
    mine.renamed(tmp_path / "new/.lock")
    with pytest.raises(Locked):
        Lock(tmp_path / "new/.lock", "x", "")
    mine.release()
    assert not list((tmp_path / "new").iterdir())


def test_two_processes_do_not_write_one_folder(tmp_path):
    with atomic_folder(tmp_path / "set") as temporary:
        (temporary / "a").touch()
        with (
            pytest.raises(Locked, match=f"set: process {os.getpid()} on this machine"),
            atomic_folder(tmp_path / "set"),
        ):
            pass
        assert (temporary / "a").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_lock_file_with_anything_in_it_names_nobody(file, tmp_path):
    with Lock(file, "x", ""):
        file.write_bytes(b"\x00\xff\x1b[31m")
        with pytest.raises(Locked, match="x: another process writes it"):
            Lock(file, "x", "")
        file.write_text(json.dumps("1 host \x1b[31mred"))
        with pytest.raises(Locked) as caught:
            Lock(file, "x", "")
        assert "\x1b" not in str(caught.value)


def test_a_link_in_the_place_of_the_lock_is_not_followed(file, tmp_path):
    (tmp_path / "mine").write_text("mine")
    file.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"):
        Lock(file, "x", "")
    assert (tmp_path / "mine").read_text() == "mine"
