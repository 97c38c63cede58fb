"""A data file names files of its own folder: what leads out of it, or is no file, is refused in one line."""

import os
from pathlib import Path

import pytest

from grpaint.core import ConfigError
from grpaint.storage.confined import inside


@pytest.fixture
def data(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a.png").write_bytes(b"a")
    (folder / "near").symlink_to("sub/a.png")
    (folder / "out.png").symlink_to("../secret.png")
    (folder / "up").symlink_to("..")
    (folder / "circle").symlink_to("circle")
    (folder / "device").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize("name", ["sub/a.png", "./sub//a.png", "near", "missing.png", "sub/a.png/deeper"])
def test_files_of_the_folder_and_links_within_it_are_named(data, name):
    assert inside(data, name, "list:3") == data / name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "is an absolute name"),
        ("../secret.png", 'contains ".."'),
        ("sub/../../secret.png", 'contains ".."'),
        ("sub/..", 'contains ".."'),
        ("out.png", "outside"),
        ("up/secret.png", "outside"),
        ("device", "outside"),
        ("circle", "cannot be opened"),
        ("pipe", "is no regular file"),
        ("sub", "is no regular file"),
        ("", "is no regular file"),
        ("a\0b", "cannot be opened"),
        ("\ud800", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        ("a\x1b[31m/../b", 'contains ".."'),
    ],
)
def test_what_leads_out_or_is_no_file_is_refused_in_one_printable_line(data, name, reason):
    with pytest.raises(ConfigError) as caught:
        inside(data, name, "list:3")
    message = str(caught.value)
    assert message.startswith('list:3: "')
    assert reason in message
    assert "Copy the file there" in message
    assert message.isprintable()


def test_a_folder_that_is_reached_by_a_link_is_a_folder_like_any_other(data, tmp_path):
    (tmp_path / "link").symlink_to("data")
    assert inside(tmp_path / "link", "sub/a.png", "list:3") == Path(tmp_path / "link/sub/a.png")
