"""Captioned images as a source: what is read, what is refused, what an iteration takes."""

import gzip
import io
import json
import os
import shutil
import tarfile
from collections import Counter

import pytest
import torch

import images.making as making
from grpaint.core.errors import ConfigError, RunError
from grpaint.images import cache, collection
from grpaint.images.data import ImageData
from grpaint.images.order import draw_bucket, epoch_order, is_held_out
from grpaint.images.tags import TagSettings
from grpaint.recipe.build import build, dump
from grpaint.recipe.pieces import Data

KINDS = {
    "folder": making.folder,
    "metadata.jsonl": making.listed,
    "shards": making.shards,
    "parquet": making.parquet,
    "on disk": making.on_disk,
}


def data(path, **settings):
    settings = {"resolution": 32, "held_out_share": 0.3, "caption_dropout": 0.0} | settings
    return ImageData(str(path), **settings)


def lines_of(source):
    log = []
    source.prepare(log.append)
    return log


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_place_gives_the_same_images_and_captions(tmp_path, kind):
    source = data(KINDS[kind](tmp_path / "set"))
    assert "12 images" in lines_of(source)[0]
    batch = source.batch(8, 0, 0)
    images, prompts = batch.images(), batch.prompts
    assert images.shape == (8, 3, 32, 32)
    assert [prompt.text for prompt in prompts] == [f"picture {making.number_of(image)}" for image in images]
    assert len({prompt.text for prompt in prompts}) == 8
    if kind in ("metadata.jsonl", "parquet", "on disk"):
        assert all(prompt.text == f"picture {prompt.metadata['number']}" for prompt in prompts)
    training, others = ({p.text for p in prompts} for prompts in (source.prompts(50, 0, 0), source.held_out(50, 0)))
    assert len(training) + len(others) == 12
    assert not training & others
    held_out = source.held_out_images(50, 0)
    assert {p.text for p in held_out.prompts} == others
    pictured = [f"picture {making.number_of(image)}" for image in held_out.images()]
    assert pictured == [p.text for p in held_out.prompts]
    assert [f"picture {making.number_of(image)}" for image in held_out.images(slice(1, 3))] == pictured[1:3]


def test_an_image_stays_on_its_side_whatever_is_added(tmp_path):
    path = making.folder(tmp_path / "set", 12)
    before = {prompt.text for prompt in data(path).held_out(99, 0)}
    making.folder(path, 40)
    after = {prompt.text for prompt in data(path).held_out(99, 0)}
    assert before == {text for text in after if int(text.split()[1]) < 12}
    assert len(after) > len(before)
    shares = [is_held_out(f"{n}", 0.1) for n in range(5000)]
    assert sum(shares) / 5000 == pytest.approx(0.1, abs=0.02)


def test_held_out_images_of_their_own(tmp_path):
    source = data(making.folder(tmp_path / "a"), held_out_path=str(making.folder(tmp_path / "b", 3)))
    assert len(source.training) == 12
    assert len(source.held_out(256, 5)) == 3


def test_an_epoch_shows_every_image_once_and_repeats_itself_exactly(tmp_path):
    path = making.folder(tmp_path / "set", 20)
    source, again = data(path), data(path)
    count = len(source.training)
    seen = [prompt.text for n in range(count) for prompt in source.batch(3, n, 7).prompts]
    assert set(Counter(seen).values()) == {3}
    epochs = [seen[n : n + count] for n in range(0, 3 * count, count)]
    assert all(len(set(epoch)) == count for epoch in epochs)
    assert epochs[0] != epochs[1]
    late, same = source.batch(3, count - 1, 7), again.batch(3, count - 1, 7)  # no iteration before it was asked for
    assert torch.equal(late.images(), same.images())
    assert torch.equal(late.images(slice(1, 3)), same.images()[1:])  # as a process opens its share
    assert late.prompts == same.prompts
    assert [p.text for p in source.batch(3, 0, 8).prompts] != seen[:3]
    drawn = [prompt.text for n in range(count) for prompt in source.prompts(3, n, 7)]
    assert set(Counter(drawn).values()) == {3}


def test_epoch_orders_continue_across_iterations():
    assert epoch_order(("a",), 5, 0, 20) == [place for n in range(4) for place in epoch_order(("a",), 5, 5 * n, 5)]
    shares = [60, 30, 10]
    taken = [draw_bucket((0,), shares, n) for n in range(2100)]  # beyond two blocks of draws
    assert [number for bucket, number in taken if bucket == 1] == list(range(sum(b == 1 for b, _ in taken)))
    counts = Counter(bucket for bucket, _ in taken)
    assert [counts[b] / 2100 for b in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_a_batch_has_one_size_and_buckets_their_share(tmp_path):
    path = making.folder(tmp_path / "set", 12, (64, 32))
    for n in range(12, 16):
        (path / f"{n:03d}.png").write_bytes(making.png(n, (30, 60)))
        (path / f"{n:03d}.txt").write_text(f"picture {n}")
    source = data(path, resolution=64, buckets=True, bucket_step=16)
    shapes = Counter(tuple(source.batch(2, n, 0).images().shape) for n in range(60))
    sizes = source.by_size(source.training)
    assert set(shapes) == {(2, 3, size[1], size[0]) for size in sizes}
    assert set(shapes) == {(2, 3, 48, 80), (2, 3, 80, 48)}
    share = {(2, 3, size[1], size[0]): len(items) / len(source.training) for size, items in sizes.items()}
    assert {shape: count / 60 for shape, count in shapes.items()} == pytest.approx(share, abs=0.15)
    assert source.held_out_images(50, 0).images().shape[0] >= 1


def test_captions_are_dropped_at_their_rate(tmp_path):
    source = data(making.folder(tmp_path / "set"), caption_dropout=0.25)
    texts = [prompt.text for n in range(100) for prompt in source.batch(8, n, 0).prompts]
    assert texts.count("") / len(texts) == pytest.approx(0.25, abs=0.05)
    assert all(prompt.text for prompt in source.prompts(100, 0, 0) + source.held_out(100, 0))


def test_references_are_the_prompts_own_images(tmp_path):
    path = making.folder(tmp_path / "set", size=(64, 48))
    assert data(path).prompts(2, 0, 0)[0].reference is None
    for prompt in data(path, references=True).prompts(5, 0, 0):
        assert prompt.reference.shape == (3, 32, 32)
        assert prompt.text == f"picture {making.number_of(prompt.reference)}"


def test_bad_files_are_left_out_by_name_and_counted(tmp_path):
    path = making.folder(tmp_path / "set")
    (path / "003.png").write_bytes(b"")
    (path / "007.png").write_bytes(making.png(7)[:50])
    source = data(path)
    log = "\n".join(lines_of(source))
    assert "12 images" in log
    assert "1 left out: empty file" in log
    assert "left out: 007.png: cut short or corrupt" in log
    assert {"picture 3", "picture 7"}.isdisjoint(prompt.text for prompt in source.prompts(40, 0, 0))


def test_the_scan_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    path = making.folder(tmp_path / "set")
    lines_of(data(path))
    read = []
    whole = collection.read_picture
    monkeypatch.setattr(collection, "read_picture", lambda *row: read.append(1) or whole(*row))
    lines_of(data(path))
    assert not read
    (path / "003.png").write_bytes(making.png(3, (40, 40)))
    lines_of(data(path))
    assert len(read) == 1
    next(cache.folder().glob("*.json")).write_text("{")  # a cache that is damaged is made again
    lines_of(data(path))
    assert len(read) == 13


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert lines_of(data(making.folder(tmp_path / "set")))


def test_a_file_that_turns_bad_later_is_named(tmp_path):
    source = data(making.folder(tmp_path / "set"))
    source.prepare(str)
    name = source.training[0].entry.name
    (tmp_path / "set" / name).write_bytes(b"gone")
    with pytest.raises(RunError, match=f"{name}: not an image .* it was whole"):
        source.batch(len(source.training), 0, 0).images()


def test_missing_captions_are_an_error_with_names_and_the_way_out(tmp_path):
    path = making.folder(tmp_path / "set")
    (path / "004.txt").unlink()
    (path / "005.txt").write_text(" \n")
    with pytest.raises(ConfigError, match=r"2 of 12 images have no caption: 004.png, 005.png\. Give each a .txt"):
        data(path).prepare(str)


def test_nothing_to_train_on_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no image there can be used"):
        data(tmp_path / "empty").prepare(str)
    path = making.folder(tmp_path / "set", 1)
    with pytest.raises(ConfigError, match="of 1 images none is"):
        data(path).prepare(str)


BROKEN = {
    "not JSON": '{"file_name": "000.png", "text": "a"}\n{"file_name": ',
    ":1: no file_name": '{"text": "a"}',
    ":1: no file_name, which names": '{"file_name": "", "text": "a"}',
    "Other columns: a;b": '{"a;b": "a"}',
    ":2: a second line for 000.png": '{"file_name": "000.png"}\n{"file_name": "000.png"}',
    ":1: there is no file 999.png": '{"file_name": "999.png", "text": "a"}',
    ":1: must be a JSON object": "[1]",
    ':1: "../other.png" contains': '{"file_name": "../other.png"}',
    ':1: "/etc/passwd" is an absolute name': '{"file_name": "/etc/passwd"}',
    ':1: "pipe.png" is no regular file': '{"file_name": "pipe.png"}',
    ":1: metadata.jsonl: images end in .png": '{"file_name": "metadata.jsonl"}',
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_bad_line_of_metadata_is_named(tmp_path, message):
    path = making.listed(tmp_path / "set")
    shutil.copy(path / "000.png", tmp_path / "other.png")
    os.mkfifo(path / "pipe.png")
    (path / "metadata.jsonl").write_text(BROKEN[message])
    with pytest.raises(ConfigError, match=message) as error:
        data(path).prepare(str)
    assert "metadata.jsonl:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cell", ["../000.png", "/etc/passwd", "link.png"])
def test_a_table_names_no_picture_outside_its_folder(tmp_path, cell):
    (tmp_path / "000.png").write_bytes(making.png(0))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link.png").symlink_to("../000.png")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [cell], "text": ["a"]})
    pyarrow.parquet.write_table(table, tmp_path / "set/a.parquet")
    with pytest.raises(ConfigError, match=r"a.parquet: a.parquet:0:0: .*only files in the folder"):
        data(tmp_path / "set").prepare(str)


def test_bad_sidecars_are_named_with_their_line(tmp_path):
    path = making.folder(tmp_path / "set")
    (path / "001.json").write_text('{\n "text": "other"\n x}')
    with pytest.raises(ConfigError, match=r"001.json:3: not JSON"):
        data(path).prepare(str)
    (path / "001.json").write_text('{"text": "another caption"}')
    with pytest.raises(ConfigError, match=r"001.png: 001.txt has another caption than 001.json"):
        data(path).prepare(str)
    (path / "001.json").unlink()
    (path / "002.txt").write_bytes(b"fine\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"002.txt:2: not UTF-8"):
        data(path).prepare(str)
    (path / "002.txt").unlink()
    (path / "002.json").write_text('{"text": 7}')
    with pytest.raises(ConfigError, match=r'002.png: its "text" is no text: 7'):
        data(path).prepare(str)


PLACES = {
    "a.txt": "a caption",
    "a.png.txt": "another",
    "a.caption": "another",
    "a.json": '{"text": "another"}',
    "a.png.json": '{"text": "another"}',
    "metadata.jsonl": '{"file_name": "a.png", "text": "another"}',
    "metadata.csv": "file_name,text\na.png,another\n",
}


@pytest.mark.parametrize("one", PLACES)
@pytest.mark.parametrize("other", PLACES)
def test_different_captions_of_an_image_are_refused_and_equal_or_missing_ones_are_not(tmp_path, one, other):
    path = tmp_path / "set"
    path.mkdir()
    (path / "a.png").write_bytes(making.png(1))
    (path / one).write_text(PLACES[one].replace("another", "a caption"))
    if one == other:
        (path / "b.txt").write_text("of no image")
    elif "txt" in other or other == "a.caption":
        (path / other).write_text("a caption\r\n")
    else:
        (path / other).write_text(PLACES[other].replace("another", "a caption"))
    assert data(path).collections[0].images[0].caption == "a caption"
    if one == other:
        return
    (path / other).write_text(PLACES[other].replace("a caption", "another") + " " * (other == "a.txt"))
    with pytest.raises(ConfigError, match=r"a.png: .* has another caption than .* Remove one of them"):
        data(path).prepare(str)
    for missing in ("null", '"None"', '" "', "NaN"):
        if other.endswith("json") or other == "metadata.jsonl":
            (path / other).write_text(PLACES[other].replace('"another"', missing))
            assert data(path).collections[0].images[0].caption == "a caption"


def test_sidecars_that_give_different_tags_are_refused_and_other_columns_are_merged(tmp_path):
    path = making.folder(tmp_path / "set", 2)
    (path / "000.json").write_text('{"tags": "a b", "source": "one", "width": 3, "score": 7}')
    (path / "000.png.json").write_text('{"tags": "a b", "source": "another", "rating": "g", "score": "7"}')
    (path / "001.json").write_text('{"tags": "a b", "score": 5}')
    (path / "001.png.json").write_text('{"tags": "a b", "score": 5.0}')  # as pandas writes a column with a gap
    fields = data(path).collections[0].entries[0].fields
    assert fields == {"tags": "a b", "source": "another", "width": 3, "rating": "g", "score": "7", "text": "picture 0"}
    (path / "000.png.json").write_text('{"tags": "a"}')
    with pytest.raises(ConfigError, match=r'000.png.json has another "tags" than 000.json'):
        data(path).prepare(str)


def test_null_is_no_caption_in_shards_and_tables_either(tmp_path):
    for name, text in (("null.tar", b"null"), ("none.tar", b'"None"')):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member_name, raw in (
                ("a.png", making.png(1)),
                ("a.json", b'{"text": %s}' % text),
                ("a.txt", b"a caption"),
            ):
                member = tarfile.TarInfo(member_name)
                member.size = len(raw)
                tar.addfile(member, io.BytesIO(raw))
        assert data(tmp_path / name).collections[0].images[0].caption == "a caption"
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [making.png(n) for n in range(3)], "text": ["a", None, "nan"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"2 of 3 images have no caption: a.parquet:0:1, a.parquet:0:2"):
        data(tmp_path / "a.parquet").prepare(str)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_metadata_may_be_a_table(tmp_path, suffix):
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    path = making.listed(tmp_path / "set", 4)
    before = data(path).collections[0].entries
    (path / "metadata.jsonl").unlink()
    rows = {"file_name": [f"00{n}.png" for n in range(4)], "text": [f"picture {n}" for n in range(4)]}
    write = pyarrow.csv.write_csv if suffix == "csv" else pyarrow.parquet.write_table
    write(pyarrow.table(rows), path / f"metadata.{suffix}")
    entries = data(path).collections[0].entries
    assert [entry.name for entry in entries] == [entry.name for entry in before]
    assert [entry.fields["text"] for entry in entries] == rows["text"]
    assert [entry.name for entry in data(path, image="file_name").collections[0].entries][:1] == (
        ["metadata.parquet:0:0"] if suffix == "parquet" else ["000.png"]
    )


def test_sidecars_in_capitals_and_names_of_windows_are_read(tmp_path):
    path = tmp_path / "set"
    (path / "b").mkdir(parents=True)
    for name in ("A.PNG", "b/c.png"):
        (path / name).write_bytes(making.png(1))
    (path / "A.TXT").write_text("a caption")
    (path / "metadata.csv").write_text("\ufefffile_name,text\r\nb\\c.png,another\r\n")
    assert [image.caption for image in data(path).collections[0].images] == ["a caption", "another"]
    (path / "a.txt").write_text("one that differs")
    with pytest.raises(ConfigError, match=r"A.PNG: .* has another caption than"):
        data(path).prepare(str)


@pytest.mark.parametrize("name", ["METADATA.CSV", "Metadata.csv"])
def test_metadata_in_capitals_is_read(tmp_path, name):
    (tmp_path / "a.png").write_bytes(making.png(1))
    (tmp_path / name).write_text("file_name,text\na.png,a caption\n")
    assert [image.caption for image in data(tmp_path).collections[0].images] == ["a caption"]
    (tmp_path / "a.txt").write_text("another")
    with pytest.raises(ConfigError, match=f"a.txt has another caption than {name}:2"):
        data(tmp_path).prepare(str)


def test_images_that_differ_in_case_alone_have_captions_of_their_own(tmp_path):
    for name in ("Ab", "ab"):
        (tmp_path / f"{name}.png").write_bytes(making.png(1))
        (tmp_path / f"{name}.txt").write_text(f"of {name}")
    assert [image.caption for image in data(tmp_path).collections[0].images] == ["of Ab", "of ab"]


def test_accents_may_be_spelt_in_two_ways(tmp_path):
    for name in ("e\u0301", "o\u0301"):
        (tmp_path / f"{name}.png").write_bytes(making.png(1))
    (tmp_path / "\xe9.txt").write_text("one")
    (tmp_path / "metadata.csv").write_text("file_name,text\n\xf3.png,two\n")
    assert [image.caption for image in data(tmp_path).collections[0].images] == ["one", "two"]


def test_one_caption_for_all_names_the_only_way_out(tmp_path):
    path = making.folder(tmp_path / "set", 5)
    for file in path.glob("*.txt"):
        file.write_text("photo of sks dog")
    for share in (0.02, 0.5):
        with pytest.raises(ConfigError, match=r"all have one caption, .* name data.held_out_path\.$"):
            data(path, held_out_share=share).prepare(str)


def test_bad_shards_are_named(tmp_path):
    path = making.shards(tmp_path / "set")
    whole = (path / "a.tar").read_bytes()
    (path / "a.tar").write_bytes(whole[:700])
    with pytest.raises(ConfigError, match=r"a.tar: not a whole tar file"):
        data(path).prepare(str)
    (path / "a.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(ConfigError, match="compressed ones must be unpacked"):
        data(path).prepare(str)
    (path / "a.tar").write_bytes(whole)
    assert lines_of(data(path))


def test_tables_that_cannot_be_read_are_named(tmp_path):
    path = making.parquet(tmp_path / "set")
    with pytest.raises(ConfigError, match=r'no column "picture"; set data.image to one of: image, text, number'):
        data(path, image="picture").prepare(str)
    (path / "c.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ConfigError, match=r"c.parquet: cannot be read as a table"):
        data(path).prepare(str)
    disk = making.on_disk(tmp_path / "disk", indices=[{"filename": "indices.arrow"}])
    with pytest.raises(ConfigError, match="flatten_indices"):
        data(disk).prepare(str)
    splits = tmp_path / "splits"
    making.on_disk(splits / "train")
    (splits / "dataset_dict.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"name one of them: {splits / 'train'}"):
        data(splits).prepare(str)


def test_two_kinds_in_one_folder_are_refused(tmp_path):
    path = making.parquet(making.shards(tmp_path / "set"))
    with pytest.raises(ConfigError, match=r"holds .tar and .parquet files"):
        data(path).prepare(str)


SETTINGS = {
    "data.train must name": {"train": ""},
    "data.held_out_share": {"held_out_share": 0.0},
    "data.resolution": {"resolution": 0},
    "data.bucket_step": {"buckets": True, "resolution": 32},
    "data.caption_dropout": {"caption_dropout": 1.0},
    "data.sharing: no such setting": {"sharing": 1},
    "data.tags.dropout": {"tags": {"dropout": 1.5}},
    "data.tags.categories": {"tags": {"categories": ["artists"]}},
}


@pytest.mark.parametrize("key", ["train", "held_out_path"])
def test_a_path_where_nothing_is_is_refused_when_the_images_are_opened_and_not_before(tmp_path, key):
    settings = build(Data, {"kind": "images", "train": str(tmp_path)} | {key: "nowhere"}, "data")[0]
    with pytest.raises(ConfigError, match=f'data.{key} = "nowhere": no such file or folder'):
        settings.prepare(str)


@pytest.mark.parametrize("message", SETTINGS)
def test_settings_are_checked_before_anything_is_read(tmp_path, message):
    table = {"kind": "images", "train": str(tmp_path)} | SETTINGS[message]
    with pytest.raises(ConfigError, match=message.replace("[", "\\[")):
        build(Data, table, "data")


def test_a_recipe_table_makes_it_and_is_given_back(tmp_path):
    table = {"kind": "images", "train": str(tmp_path), "resolution": 64, "tags": {"quality": {"good": 0.5}}}
    table["tags"]["categories"] = ["quality", "general"]
    made, plain = build(Data, table, "data")
    assert made.tags == TagSettings(categories=("quality", "general"), quality={"good": 0.5})
    assert build(Data, plain, "data")[0] == made
    assert dump(made) == plain


def test_evaluations_may_be_split_by_a_column(tmp_path):
    source = data(making.listed(tmp_path / "set"), report_by="number")
    prompt = source.held_out(1, 0)[0]
    assert source.category(prompt) == str(prompt.metadata["number"])
    assert data(tmp_path / "set").category(prompt) == "all"


def test_a_shard_is_indexed_once(tmp_path, monkeypatch):
    path = making.shards(tmp_path / "set")
    before = [prompt.text for prompt in data(path).prompts(9, 0, 0)]
    monkeypatch.setattr("tarfile.open", lambda *_, **__: pytest.fail("the shard was read again"))
    assert [prompt.text for prompt in data(path).prompts(9, 0, 0)] == before
    os.utime(path / "a.tar", (1, 1))
    with pytest.raises(pytest.fail.Exception):
        data(path).prepare(str)


def test_metadata_of_a_sidecar_reaches_the_prompt(tmp_path):
    path = making.folder(tmp_path / "set")
    for n in range(12):
        (path / f"{n:03d}.png.json").write_text(json.dumps({"text": f"picture {n}", "source": "here"}))
    prompt = data(path).held_out(1, 0)[0]
    assert prompt.metadata["source"] == "here"
    assert prompt.metadata["file"] == f"{int(prompt.text.split()[1]):03d}.png"


def test_a_tagged_prompt_carries_its_tags_and_a_sentence(tmp_path):
    path = making.folder(tmp_path / "set")
    for n in range(12):
        (path / f"{n:03d}.txt").unlink()
        facts = {"tags_general": ["1girl", "long_hair", f"t{n}"], "tags_meta": ["scan"], "score": n, "rating": "g"}
        (path / f"{n:03d}.json").write_text(json.dumps(facts))
    tags = TagSettings(categories=("quality", "rating", "general"), quality={"good": 0.0}, shuffle="all")
    source = data(path, tags=tags)
    prompt = source.held_out(1, 0)[0]
    number = prompt.metadata["score"]
    assert prompt.text == f"good, general, 1girl, long hair, t{number}"
    assert prompt.metadata["tags"] == ["1girl", "long hair", f"t{number}"]
    assert prompt.metadata["sentence"] == f"one girl, with long hair and t{number}"
    assert prompt.metadata["rating"] == "g"
    training = source.prompts(9, 0, 3)
    assert training == data(path, tags=tags).prompts(9, 0, 3)
    assert any(not p.text.startswith("good, general") for p in training)
    assert {p.text for p in training} != {p.text for p in source.prompts(9, 1, 3)}
    (path / "004.json").write_text('{"tags_meta": ["scan"], "score": 1, "rating": "g"}')
    with pytest.raises(ConfigError, match=r"1 of 12 images have no caption: 004.png"):
        data(path, tags=tags).prepare(str)
