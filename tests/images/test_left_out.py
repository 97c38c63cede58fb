"""Whatever looks like an image is read, or named as left out with its reason; nothing is silently less."""

import base64
import io
import os
import tarfile

import making
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from grpaint.core.errors import ConfigError
from grpaint.images import tables
from grpaint.images.opening import open_source
from tiny_runs import command


def listing(path, image="image"):
    """The names of what is read at a path, and of what is left out with the reason."""
    source = open_source(path, "text", image, "data.train")
    entries = source.entries()
    assert all(source.read(entry) for entry in entries)
    return [entry.name for entry in entries], dict(source.left_out())


def captioned(path, name, kind="PNG"):
    """An image of a format, with a .txt beside it."""
    file = path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    making.picture(9).save(file, kind)
    file.with_suffix(".txt").write_text("a caption")
    return file


def tar_of(file, members):
    """A shard of members, each with its bytes, or a link's kind and target."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file


def pairs(*stems):
    """Members of a shard: an image and a .txt for each name."""
    return [item for stem in stems for item in ((f"{stem}.png", making.png(5)), (f"{stem}.txt", b"a caption"))]


OTHER_FORMATS = {".heic", ".svgz", ".srw", ".m4v", ".mds", ".tfrecord-00000-of-00002", ".JPF"}
ARCHIVES = {".tar.lz4", ".tar.Z", ".cbt", ".zip.001", ".z01", ".mds.zstd"}
FORMATS = {".jfif": "JPEG", ".jpe": "JPEG", ".JPEG": "JPEG", ".mpo": "JPEG", ".apng": "PNG", ".avif": "AVIF"}


def test_images_of_all_suffixes_that_mean_their_formats_are_read(tmp_path):
    names = [
        captioned(tmp_path, f"a{number}{suffix}", kind).name for number, (suffix, kind) in enumerate(FORMATS.items())
    ]
    assert listing(tmp_path) == (names, {})
    scan = command("data", "scan", str(tmp_path))
    assert (scan.code, "6 whole" in scan.out) == (0, True)


def test_what_looks_like_an_image_by_name_or_first_bytes_is_named_if_it_is_not_read(tmp_path):
    making.folder(tmp_path, 1)
    png = making.png(1)
    for name in ("b.heic", "c.JP2", "d.psd", "e.mp4"):
        (tmp_path / name).write_bytes(b"whatever")
    for name in ("f.zip", "g.tar.gz", "h.tgz"):
        (tmp_path / name).write_bytes(b"whatever")
    for name in ("i", "j.jpg~", "k.png.1", "l.jpg?size=large", "m.bak"):
        (tmp_path / name).write_bytes(png)
    for name in ("n.npz", "o.bak", "README.md", "p"):
        (tmp_path / name).write_bytes(b"no image")
    names, left_out = listing(tmp_path)
    assert names == ["000.png"]
    by_reason = {
        reason: "".join(sorted(n[0] for n in left_out if left_out[n] == reason)) for reason in left_out.values()
    }
    assert by_reason == {
        "a format that is not read": "bcde",
        "an archive; unpack it": "fgh",
        "an image whose name does not end as an image's": "ijklm",
    }
    scan = command("data", "scan", str(tmp_path))
    assert "left out: b.heic: a format that is not read" in scan.out
    captions = command(
        "data", "captions", str(tmp_path), "--out", str(tmp_path / "c.txt"), sets=[f'data.held_out_path="{tmp_path}"']
    )
    assert captions.code == 0


def test_formats_and_archives_are_known_by_all_their_names(tmp_path):
    making.folder(tmp_path, 1)
    for suffix in OTHER_FORMATS | ARCHIVES:
        (tmp_path / f"b{suffix}").write_bytes(b"II*\0")
    left_out = listing(tmp_path)[1]
    by_reason = {
        reason: {name.removeprefix("b") for name in left_out if left_out[name] == reason}
        for reason in left_out.values()
    }
    assert by_reason == {"a format that is not read": OTHER_FORMATS, "an archive; unpack it": ARCHIVES}


def test_a_table_without_a_suffix_is_named(tmp_path):
    making.folder(tmp_path, 1)
    pyarrow.parquet.write_table(pyarrow.table(making.rows(1)), tmp_path / "train-00000-of-00001")
    assert listing(tmp_path) == (
        ["000.png"],
        {"train-00000-of-00001": "a table whose name does not end in .parquet or .arrow"},
    )


@pytest.mark.parametrize("name", ["#snapshot", "@Recycle", "System Volume Information", "$Recycle.Bin", "lost+found"])
def test_copies_of_disks_are_named(tmp_path, name):
    making.folder(tmp_path, 1)
    making.folder(tmp_path / name / "daily", 1)
    assert listing(tmp_path) == (["000.png"], {f"{name}/daily/000.png": "hidden, or a copy that a system keeps"})


def test_files_of_the_hubs_cache_are_read_by_their_links_alone(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "blobs" / f"{number}f").write_bytes(making.png(number))
        if name != "c":
            link = tmp_path / "snapshots/9e" / f"{name}.png"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../../blobs/{number}f")
    names = ["snapshots/9e/a.png", "snapshots/9e/b.png"]
    assert listing(tmp_path) == (names, {"blobs/2f": "an image whose name does not end as an image's"})


def test_hidden_copies_are_named_and_their_sidecars_never_read(tmp_path):
    making.folder(tmp_path, 2)
    for name in (".ipynb_checkpoints/000-checkpoint.png", "._001.png", "__MACOSX/001.png", "@eaDir/001.png/thumb.jpg"):
        captioned(tmp_path, name, "JPEG" if name.endswith("jpg") else "PNG")
    (tmp_path / "._000.txt").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / ".ipynb_checkpoints/metadata.jsonl").write_text('{"file_name": "nothing.png"}\n')
    captioned(tmp_path, ".git/annex/objects/x.png")
    names, left_out = listing(tmp_path)
    assert names == ["000.png", "001.png"]
    assert set(left_out.values()) == {"hidden, or a copy that a system keeps"}
    assert len(left_out) == 4


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    path, elsewhere = making.folder(tmp_path / "set", 2), making.folder(tmp_path / "elsewhere", 3)
    (path / "a more").symlink_to(elsewhere)
    (path / "b again").symlink_to(elsewhere)
    (path / "below").mkdir()
    (path / "below/circle").symlink_to("..")
    (path / "root").symlink_to("/")
    (path / "gone.png").symlink_to("nowhere.png")
    (path / "self.png").symlink_to("self.png")
    names, left_out = listing(path)
    assert names == ["000.png", "001.png", *(f"a more/00{n}.png" for n in range(3))]
    circle = "a link back to a folder that is read anyway, or that holds this one"
    assert left_out == {
        **dict.fromkeys(("b again", "below/circle", "root"), circle),
        **dict.fromkeys(("gone.png", "self.png"), "a link to nothing"),
    }


def test_a_folder_keeps_its_own_name_if_a_link_leads_to_it_too(tmp_path):
    making.folder(tmp_path / "real", 1)
    (tmp_path / "a link").symlink_to("real")
    assert listing(tmp_path)[0] == ["real/000.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    closed, list_folder = making.folder(tmp_path / "closed", 1), os.scandir

    def scandir(folder):
        if folder == closed:
            raise PermissionError(13, "Permission denied")
        return list_folder(folder)

    monkeypatch.setattr("grpaint.images.walk.os.scandir", scandir)  # root may read every folder
    assert listing(tmp_path)[1] == {"closed": "cannot be read: Permission denied"}


@pytest.mark.parametrize("column", ["url", "image"])
def test_a_table_named_like_a_shard_is_its_log_unless_it_has_images(tmp_path, column):
    tar_of(tmp_path / "0.tar", pairs("a"))
    pyarrow.parquet.write_table(pyarrow.table({column: ["u"], "text": ["a"]}), tmp_path / "0.parquet")
    if column == "url":
        assert listing(tmp_path) == (["0.tar:a.png"], {})
    else:
        with pytest.raises(ConfigError, match=r"holds .tar and .parquet files"):
            listing(tmp_path)
    (tmp_path / "0.parquet").write_bytes(b"PAR1 damaged PAR1")
    with pytest.raises(ConfigError, match=r"0.parquet: cannot be read as a table"):
        listing(tmp_path)
    (tmp_path / "0.parquet").rename(tmp_path / "1.parquet")
    with pytest.raises(ConfigError, match=r"holds .tar and .parquet files"):
        listing(tmp_path)


def test_masks_beside_images_are_named(tmp_path):
    making.folder(tmp_path, 2)
    (tmp_path / "000-masklabel.png").write_bytes(making.png(3))
    captioned(tmp_path, "of a-masklabel.png")
    (tmp_path / "of a.txt").write_text("a text alone has no mask")
    assert listing(tmp_path) == (
        ["000.png", "001.png", "of a-masklabel.png"],
        {"000-masklabel.png": "a mask of another image"},
    )


def test_names_with_dots_and_links_in_a_shard_are_samples(tmp_path):
    members = [*pairs("0000", "22.05", "22.06", "d/a.left"), ("d/hard.png", (tarfile.LNKTYPE, "0000.png"))]
    members += [("d/soft.png", (tarfile.SYMTYPE, "../22.05.png")), ("d/hard.txt", b"one"), ("d/soft.txt", b"two")]
    members += [("b.1.png", making.png(1)), ("b.2.png", making.png(2)), ("b.json", b'{"text": "of both"}')]
    members += [
        ("e.JFIF", making.png(1)),
        ("e.TXT", b"a caption"),
        ("f.png", making.png(1)),
        ("f.png.txt", b"a caption"),
    ]
    source = open_source(tar_of(tmp_path / "a.tar", members), "text", "image", "data.train")
    captions = {entry.name.removeprefix("a.tar:"): entry.fields["text"] for entry in source.entries()}
    assert {name for name, text in captions.items() if text == "a caption"} == {
        *("0000.png", "22.05.png", "22.06.png", "d/a.left.png", "e.JFIF", "f.png")
    }
    assert {name: text for name, text in captions.items() if text != "a caption"} == {
        "d/hard.png": "one", "d/soft.png": "two", "b.1.png": "of both", "b.2.png": "of both"
    }  # fmt: skip
    assert source.left_out() == {}


def test_members_of_a_shard_that_are_not_read_are_named(tmp_path):
    members = [*pairs("a"), ("a.seg.png", making.png(2)), ("._a.png", b"fork"), ("__MACOSX/b.jpg", b"copy")]
    members += [
        ("c.heic", b"x"),
        ("d.zip", b"x"),
        ("e.tar", b"x"),
        ("metadata.jsonl", b"{}"),
        ("f", making.png(2)),
        ("g.cls", b"3"),
        ("._a.txt", b"\xff"),
    ]
    members += [("h.png", (tarfile.SYMTYPE, "nowhere.png")), ("a.png", making.png(7)), ("a.txt", b"the later one")]
    source = open_source(tar_of(tmp_path / "a.tar", members), "text", "image", "data.train")
    assert [(entry.name, entry.fields["text"]) for entry in source.entries()] == [("a.tar:a.png", "the later one")]
    assert source.read(source.entries()[0]) == making.png(7)
    hidden = "hidden, or a copy that a system keeps"
    assert {name.removeprefix("a.tar:"): reason for name, reason in source.left_out().items()} == {
        "a.seg.png": "a further image of a sample, without a caption of its own",
        "._a.png": hidden,
        "__MACOSX/b.jpg": hidden,
        "c.heic": "a format that is not read",
        "d.zip": "an archive; unpack it",
        "e.tar": "a shard or table within a shard; unpack it",
        "metadata.jsonl": "a shard or table within a shard; unpack it",
        "f": "an image whose name does not end as an image's",
        "h.png": "a link to nothing",
        "a.png": "replaced by a later member of its name",
    }


def test_a_member_replaces_an_earlier_one_also_with_a_dot_before_its_name(tmp_path):
    members = [("a.png", making.png(1)), ("a.txt", b"old"), ("./a.png", making.png(2)), ("./a.txt", b"new")]
    source = open_source(tar_of(tmp_path / "a.tar", members), "text", "image", "data.train")
    entries = source.entries()
    assert [(source.read(entry), entry.fields["text"]) for entry in entries] == [(making.png(2), "new")]
    assert source.left_out() == {"a.tar:a.png": "replaced by a later member of its name"}


def test_a_member_may_have_a_sidecar_in_other_capitals_or_accents(tmp_path):
    members = [("IMG.PNG", making.png(1)), ("img.txt", b"one"), ("e\u0301.png", making.png(2)), ("\xe9.txt", b"two")]
    source = open_source(tar_of(tmp_path / "a.tar", members), "text", "image", "data.train")
    assert [entry.fields["text"] for entry in source.entries()] == ["one", "two"]


def test_members_that_differ_in_case_alone_have_captions_of_their_own(tmp_path):
    members = [(f"s.{name}.png", making.png(1)) for name in "Aab"]
    members += [("s.A.txt", b"big"), ("s.a.txt", b"small"), ("s.B.TXT", b"another")]
    source = open_source(tar_of(tmp_path / "a.tar", members), "text", "image", "data.train")
    assert [entry.fields["text"] for entry in source.entries()] == ["big", "small", "another"]
    members.append(("s.b.txt", b"a different one"))
    with pytest.raises(ConfigError, match=r"s.b.png: s.b.txt has another caption than s.B.TXT"):
        listing(tar_of(tmp_path / "a.tar", members))


@pytest.mark.parametrize("deeper", ["", "deep/er/"])
def test_shards_and_tables_beside_images_are_refused(tmp_path, deeper):
    for name in ("tar", "parquet"):
        making.folder(tmp_path / name, 5)
        (tmp_path / name / deeper).mkdir(parents=True, exist_ok=True)
    tar_of(tmp_path / "tar" / deeper / "backup.TAR", pairs("a", "b"))
    pyarrow.parquet.write_table(pyarrow.table(making.rows(2)), tmp_path / "parquet" / deeper / "old.Parquet")
    with pytest.raises(ConfigError, match=r"holds .tar files and 5 images, such as 000.png"):
        listing(tmp_path / "tar")
    with pytest.raises(ConfigError, match=r"holds tables and 5 images that no row of them names, such as 000.png"):
        listing(tmp_path / "parquet")


def test_shards_and_tables_on_any_level_are_read(tmp_path):
    tar_of(tmp_path / "tars/a.tar", pairs("a"))
    tar_of(tmp_path / "tars/b/c.tar", pairs("c", "d"))
    tar_of(tmp_path / "tars/b/._c.tar", pairs("e"))
    (tmp_path / "tars/d.tar.gz").write_bytes(b"x")
    assert listing(tmp_path / "tars") == (
        ["a.tar:a.png", "b/c.tar:c.png", "b/c.tar:d.png"],
        {"b/._c.tar": "hidden, or a copy that a system keeps", "d.tar.gz": "an archive; unpack it"},
    )
    making.parquet(tmp_path / "hub/data", 4)
    (tmp_path / "hub/README.md").write_text("a card")
    assert len(listing(tmp_path / "hub")[0]) == 4
    assert listing(tmp_path / "hub")[0][0] == "data/a.parquet:0:0"


def test_a_table_may_name_all_images_beside_it(tmp_path):
    making.folder(tmp_path, 3)
    table = pyarrow.table({"file_name": ["000.png", "001.png", "./002.png"], "text": list("abc")})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert len(listing(tmp_path, "file_name")[0]) == 3
    (tmp_path / "002.png").rename(tmp_path / "003.png")
    with pytest.raises(ConfigError, match=r"1 images that no row of them names, such as 003.png"):
        listing(tmp_path, "file_name")


def test_a_table_may_name_images_as_windows_or_macos_does(tmp_path):
    making.folder(tmp_path / "pics", 2)
    (tmp_path / "pics/\xe9.png").write_bytes(making.png(3))
    table = pyarrow.table({"image": ["pics\\000.png", "pics\\001.png", "pics/e\u0301.png"], "text": list("abc")})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert len(listing(tmp_path)[0]) == 3


def test_of_a_table_beside_images_only_the_column_with_their_names_is_read_for_them(tmp_path, monkeypatch):
    making.folder(tmp_path, 2)
    pyarrow.parquet.write_table(
        pyarrow.table({"image": ["000.png", "001.png"], "text": ["a", "b"]}), tmp_path / "a.parquet"
    )
    source, read, columns = open_source(tmp_path, "text", "image", "data.train"), tables._read_group, []

    def read_group(file, group, names=None):
        columns.append(read(file, group, names).column_names)
        return read(file, group, names)

    monkeypatch.setattr(tables, "_read_group", read_group)
    assert len(source.entries()) == 2
    assert columns == [["image", "text"], ["image"], ["image"]]


def test_both_formats_of_arrow_are_read(tmp_path):
    table = pyarrow.table(making.rows(3))
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as into, pyarrow.ipc.new_file(into, table.schema) as file:
        file.write_table(table, max_chunksize=2)
    assert listing(tmp_path)[0] == ["a.arrow:0:0", "a.arrow:0:1", "a.arrow:1:0"]


def test_arrow_files_that_a_data_set_on_disk_does_not_list_are_named(tmp_path):
    making.on_disk(tmp_path / "set", 4)
    (tmp_path / "set/cache-1f.arrow").write_bytes((tmp_path / "set/data-00000-of-00002.arrow").read_bytes())
    names, left_out = listing(tmp_path / "set")
    assert len(names) == 4
    assert left_out == {"cache-1f.arrow": "not listed in the state.json beside it"}
    making.on_disk(tmp_path / "dict/train", 4)
    (tmp_path / "dict/dataset_dict.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"a data set with splits; name one of them: .*dict/train"):
        listing(tmp_path)


def test_caches_of_the_datasets_package_are_named(tmp_path):
    making.on_disk(tmp_path, 2)
    (tmp_path / "state.json").unlink()
    cache = tmp_path / "cache-0123456789abcdef_00000_of_00002.arrow"
    cache.write_bytes((tmp_path / "data-00000-of-00002.arrow").read_bytes())
    names, left_out = listing(tmp_path)
    assert (len(names), left_out) == (2, {cache.name: "a cache of the datasets package"})


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("name", ["a.txt", "a.json", "metadata.jsonl", "metadata.csv", "b.parquet", "b.arrow", "b.tar"])
def test_pointers_of_git_lfs_are_no_captions_shards_or_tables(tmp_path, name):
    if not name.startswith("b"):
        (tmp_path / "a.png").write_bytes(making.png(1))
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ConfigError, match=rf"{name}: .*a pointer of Git LFS, not the file; run git lfs pull"):
        listing(tmp_path)


SPELLINGS = {
    "plain": lambda raw: base64.b64encode(raw).decode(),
    "in lines": lambda raw: base64.encodebytes(raw).decode(),
    "for URLs, without padding": lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="),
    "data URL": lambda raw: "data:image/png;base64," + base64.b64encode(raw).decode(),
    "as bytes": base64.b64encode,
    "in a struct": lambda raw: {"bytes": base64.b64encode(raw).decode(), "path": None},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_images_in_base64_are_read(tmp_path, spelling):
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "PNG")
    raws = [making.png(3), noise.getvalue()]
    table = pyarrow.table({"image": [SPELLINGS[spelling](raw) for raw in raws], "text": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path, "text", "image", "data.train")
    assert [source.read(entry) for entry in source.entries()] == raws


def test_long_texts_that_are_no_image_are_named_in_short_lines(tmp_path):
    table = pyarrow.table(
        {"image": ["A" * 9000, "data:image/png;base64,AAAA", "https://a.b/c.png", ""], "text": list("abcd")}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    scan = command("data", "scan", str(tmp_path))
    assert "a.parquet:0:0: no image in its column" in scan.out
    assert "a.parquet:0:1: no image in its column" in scan.out
    assert "a.parquet:0:2: an address, and nothing is downloaded; name its file" in scan.out
    assert "a.parquet:0:3: no image in its column" in scan.out
    assert len(scan.out + scan.err) < 1500
