"""Data sets that are damaged or made by somebody else: what can be used is, and the rest is told in one line."""

import io
import json
import os
import tarfile

import making
import pytest
from PIL import Image

from grpaint.core.errors import ConfigError
from grpaint.images import tables
from grpaint.images.opening import open_source
from tiny_runs import command


def opened(path):
    return open_source(path, "text", "image", "data.train")


def refusal(path):
    """The line with which the images at a path are refused."""
    with pytest.raises(ConfigError) as error:
        opened(path).entries()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def with_header(file, member, begin, value):
    """Overwrite a field of a tar member's header, and make its checksum right again."""
    raw = bytearray(file.read_bytes())
    at = raw.index(member)
    raw[at + begin : at + begin + len(value)] = value
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    file.write_bytes(raw)
    return file


SIZES = {
    "-512, which leads back to the same header": b"\xff" * 10 + b"\xfe\x00",
    "-5": b"\xff" * 11 + b"\xfb",
    "2^63 - 1": b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7,
    "beyond the end of the file": b"00000777777\0",
    "no number": b"size-------\0",
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_shard_with_a_member_of_impossible_size_is_refused(tmp_path, size):
    file = with_header(making.shard(tmp_path / "a.tar", range(3)), b"data/001.png", 124, size)
    assert "not a whole tar file" in refusal(file)


def test_a_damaged_header_is_not_taken_for_the_end_of_a_shard(tmp_path):
    file = making.shard(tmp_path / "a.tar", range(3))
    raw = bytearray(file.read_bytes())
    raw[raw.index(b"data/001.png") + 150] ^= 1
    file.write_bytes(raw)
    assert "damaged header" in refusal(file)


@pytest.mark.parametrize("record", [{"size": "abc"}, {"GNU.sparse.map": "0,1"}, {"size": "9" * 20}])
def test_a_shard_with_damaged_extended_headers_is_refused(tmp_path, record):
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.png")
        member.size, member.pax_headers = len(making.png(1)), record
        tar.addfile(member, io.BytesIO(making.png(1)))
    assert "not a whole tar file" in refusal(file)


def test_a_pipe_among_the_files_is_never_waited_for(tmp_path):
    path = making.folder(tmp_path / "set")
    for name in ("a.tar", "b.png", "c.parquet", "000.png.json"):
        os.mkfifo(path / name)
    assert len(opened(path).entries()) == 12
    os.mkfifo(tmp_path / "p.tar")
    assert "pipe" in str(pytest.raises(ConfigError, opened, tmp_path / "p.tar").value)
    os.mkfifo(path / "metadata.jsonl")
    with pytest.raises(ConfigError, match=r"metadata\.jsonl: no regular file"):
        opened(path).entries()


@pytest.mark.parametrize(
    "state",
    [{}, {"_data_files": None}, {"_data_files": 3}, {"_data_files": [{}]}, {"_data_files": [{"filename": "../a"}]}, []],
)
def test_a_data_set_on_disk_whose_state_lists_no_file_of_it_is_refused(tmp_path, state):
    import pyarrow

    table = pyarrow.table(making.rows(3))
    with pyarrow.ipc.new_stream(tmp_path / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert "state.json" in refusal(tmp_path)


def test_a_turned_byte_of_a_table_leaves_a_table_or_one_line_with_its_name(tmp_path):
    import pyarrow

    table = pyarrow.table({"image": [making.png(n) for n in range(3)], "text": list("abc")})
    for suffix in (".arrow", ".parquet"):
        file = tmp_path / f"a{suffix}"
        if suffix == ".arrow":
            with pyarrow.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        else:
            pyarrow.parquet.write_table(table, file, use_dictionary=False)
        raw = file.read_bytes()
        for part in range(6):
            damaged = bytearray(raw)
            damaged[part * len(raw) // 6 + 11] ^= 255
            file.write_bytes(damaged)
            tables._open_table.cache_clear()
            tables._read_group.cache_clear()
            try:
                count, reason = len(opened(file).entries()), str(file)
            except ConfigError as error:
                count, reason = 3, str(error)
            assert (count, str(file) in reason) == (3, True)


def test_a_table_that_ends_the_process_that_reads_it_is_told_in_a_line(tmp_path, monkeypatch):
    path = making.parquet(tmp_path / "set")
    (tmp_path / "table_check.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(tables, "CHECK", tmp_path / "table_check.py")
    assert "ends a process" in refusal_of_one(path)


def test_a_table_that_was_read_is_used_however_its_process_ends(tmp_path, monkeypatch):
    path = making.parquet(tmp_path / "set")
    (tmp_path / "table_check.py").write_text(
        "import sys\nfor n in range(len(sys.argv) - 1):\n    print(f'[{n}, \"\"]')\nsys.exit(3)\n"
    )
    monkeypatch.setattr(tables, "CHECK", tmp_path / "table_check.py")
    assert opened(path).entries()


def refusal_of_one(path):
    with pytest.raises(ConfigError) as error:
        opened(path).entries()
    return str(error.value)


def test_a_row_group_that_cannot_be_read_though_its_values_can_is_told_in_a_line(tmp_path, monkeypatch):
    import pyarrow.parquet

    def read_row_group(*_, **__):
        raise pyarrow.lib.ArrowInvalid("Column 3 named rating expected length 8 but got length 0")

    path = making.parquet(tmp_path / "set")
    tables._read_group.cache_clear()
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", read_row_group)
    assert "cannot be read as a table: Column 3 named rating" in refusal(path)


def test_a_table_is_checked_once_until_it_changes(tmp_path, monkeypatch):
    path = making.parquet(tmp_path / "set")
    opened(path).entries()
    monkeypatch.setattr(tables, "CHECK", tmp_path / "none.py")
    assert opened(path).entries()
    os.utime(next(path.glob("*.parquet")), (1, 1))
    assert refusal_of_one(path)


def test_postscript_under_the_name_of_a_picture_starts_no_program(tmp_path, monkeypatch):
    path = making.folder(tmp_path / "set")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    Image.new("RGB", (8, 8)).save(path / "000.png", "EPS")
    scan = command("data", "scan", str(path))
    assert (scan.code, "000.png: not an image" in scan.out) == (0, True)
    assert not (tmp_path / "started").exists()


def test_names_of_any_bytes_are_shown_with_escapes_and_their_images_used(tmp_path):
    path = making.folder(tmp_path / "set")
    for stem in (b"\xff\xfe", b"\x1b]0;t\x07", b"a\nb", b"[bold]", "e\u202eg".encode()):
        for suffix, raw in ((b".png", making.png(99)), (b".txt", b"odd one")):
            with open(os.path.join(os.fsencode(path), stem + suffix), "wb") as file:
                file.write(raw)
    scan = command("data", "scan", str(path))
    assert scan.code == 0
    assert "17 whole" in scan.out
    for name in (r"\udcff\udcfe.png", r"\x1b]0;t\x07.png", r"a\nb.png", "[bold].png", r"e\u202eg.png"):
        assert name in scan.out
    scan.out.encode()
    captions = command(
        "data", "captions", str(path), "--out", str(tmp_path / "c.txt"), sets=["data.held_out_share=0.3"]
    )
    assert captions.code == 0


def test_a_lone_surrogate_in_a_caption_is_replaced(tmp_path):
    path = making.folder(tmp_path / "set")
    for n in range(12):
        (path / f"{n:03d}.txt").unlink()
        (path / f"{n:03d}.json").write_text(f'{{"text": "cut \\ud83d {n}"}}')
    captions = command(
        "data", "captions", str(path), "--out", str(tmp_path / "c.txt"), sets=["data.held_out_share=0.3"]
    )
    assert captions.code == 0
    assert "cut \ufffd 1" in (tmp_path / "c.txt").read_text(encoding="utf-8")


def test_a_metadata_line_may_name_a_picture_that_is_a_link_but_nothing_outside_its_folder(tmp_path):
    path = making.listed(tmp_path / "set", 3)
    elsewhere = tmp_path / "elsewhere.png"
    (path / "000.png").rename(elsewhere)
    (path / "000.png").symlink_to(elsewhere)
    assert len(opened(path).entries()) == 3
    for name in ("../elsewhere.png", str(elsewhere), "a\0.png"):
        (path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}) + "\n")
        assert "metadata.jsonl:1" in refusal(path)


@pytest.mark.parametrize("damage", [lambda raw: raw.replace(b"32", b"23"), lambda raw: raw[:40], lambda _: b"[]"])
def test_damaged_facts_in_the_cache_are_found_out_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = making.folder(tmp_path / "set")
    before = command("data", "scan", str(path)).out
    for file in (tmp_path / "cache").rglob("*.json"):
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        assert file.read_bytes() != whole
    assert command("data", "scan", str(path)).out == before
