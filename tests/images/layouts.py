"""Folders as programs and people leave them: what lies in each, and the settings with which it is read.

Each layout is a table of files: their bytes or texts by name, ``link(target)`` for a link. Images differ in colour.
"""

import base64
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import making
import pyarrow
import pyarrow.parquet

from images import icc


class link(str):
    """The target of a symbolic link."""


@dataclass
class Layout:
    """Files by name, and settings of the [data] table."""

    files: dict
    settings: dict = field(default_factory=dict)

    def build(self, root):
        """Write the files below ``root``."""
        for name, content in self.files.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, link):
                file.symlink_to(content)
            elif callable(content):
                content(file)
            else:
                file.write_bytes(content if isinstance(content, bytes) else content.encode())


def image(number, kind="PNG", **settings):
    """An image of a format."""
    into = io.BytesIO()
    making.picture(number).save(into, kind, **settings)
    return into.getvalue()


def captioned(*names, suffix=".txt", text="a caption {}", kind="PNG"):
    """Images with a sidecar each; ``names`` are stems, or names with a suffix."""
    files = {}
    for number, name in enumerate(names):
        stem = Path(name).with_suffix("") if Path(name).suffix in (".jpg", ".JPG", ".jfif", ".avif") else name
        files[name if str(stem) != name else f"{name}.png"] = image(number, kind)
        files[f"{stem}{suffix}"] = text.format(number)
    return files


def lines(*rows):
    """A file with a JSON object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(write=pyarrow.parquet.write_table, **columns):
    """A table that is written when the layout is built."""
    return lambda file: write(pyarrow.table(columns), file)


def tar(files):
    """A shard of these files."""

    def write(file):
        with tarfile.open(file, "w") as opened:
            for name, content in files.items():
                member, raw = tarfile.TarInfo(name), content if isinstance(content, bytes) else content.encode()
                member.size = len(raw)
                opened.addfile(member, io.BytesIO(raw))

    return write


def images(count):
    return [{"bytes": image(number), "path": None} for number in range(count)]


TEXTS = ["a caption 0", "a caption 1", "a caption 2"]
POST = {"rating": "s", "score": 4}
DANBOORU = json.dumps(POST | {"category": "danbooru", "tag_string_general": "1girl solo", "tag_string_artist": "wlop"})
YANDERE = json.dumps(POST | {"category": "yandere", "tags": "1girl long_hair"})
E621 = json.dumps({"tags": {"general": ["solo"], "species": ["fox"]}, "score": {"up": 3, "down": 0, "total": 3}})
PAIR = captioned("a", "b")
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
SAFE = {"tags": {"ratings": ["general"]}}

LAYOUTS = {
    "kohya: `10_name/`, `.txt`": Layout(captioned("10_sks dog/a", "10_sks dog/b", "1_dog/c")),
    "kohya: `.caption`, caches": Layout(
        captioned("a", "b", suffix=".caption") | {"a_sd15.npz": b"PK", "a_0512x0512_flux.npz": b"PK"}
    ),
    "kohya: `meta_cap.json` alone": Layout({"a.png": image(0), "meta_cap.json": '{"a": {"caption": "a"}}'}),
    "SimpleTuner: `.txt`, indexes, caches": Layout(
        PAIR | {"aspect_ratio_bucket_indices_x.json": "{}", "cache/vae/a.pt": b"PK"}
    ),
    "OneTrainer: masks": Layout(PAIR | {"a-masklabel.png": image(9), "b-condlabel.png": image(8)}),
    "ai-toolkit: `_latent_cache`": Layout(PAIR | {"_latent_cache/a_1.safetensors": b"x", ".aitk_size.json": "{}"}),
    "musubi-tuner: `dataset.jsonl` alone": Layout(
        {"a.png": image(0), "dataset.jsonl": lines({"image_path": "a.png", "caption": "a"})}
    ),
    "gallery-dl, danbooru: `.jpg.json`": Layout(
        {
            "danbooru/x/1.jpg": image(0, "JPEG"),
            "danbooru/x/1.jpg.json": DANBOORU,
            "danbooru/x/info.json": "{}",
        },
        {"tags": {"ratings": ["sensitive"]}},
    ),
    "gallery-dl, yande.re: ratings of that site": Layout({"1.png": image(0), "1.png.json": YANDERE}, SAFE),
    "gallery-dl: ratings of no site": Layout({"1.png": image(0), "1.png.json": '{"tags": "a b", "rating": "s"}'}, SAFE),
    "e621: tags by category": Layout({"1.png": image(0), "1.json": E621}, {"tags": {"least_score": 2.0}}),
    "Hydrus: a tag a line": Layout(
        {"1f.png": image(0), "1f.png.txt": "1girl\nsolo\nlong hair\n"}, {"tags": {"shuffle": "all"}}
    ),
    "a tagger: tags with commas in JSON": Layout(
        {"1.png": image(0), "1.json": '{"tags": "1girl, long hair"}'}, {"tags": {}}
    ),
    "img2dataset: webdataset": Layout(
        {
            "00000.tar": tar(captioned("000000000.jpg", "000000001.jpg", kind="JPEG")),
            "00000.parquet": table(url=["u"] * 3, status=["success", "success", "failed"]),
            "00000_stats.json": "{}",
        }
    ),
    "img2dataset: files": Layout(
        captioned("00000/000000000.jpg", "00000/000000001.jpg", kind="JPEG")
        | {"00000.parquet": table(url=["u"] * 2), "00000_stats.json": "{}"}
    ),
    "img2dataset: parquet": Layout(
        {"00000.parquet": table(jpg=[image(n) for n in range(3)], caption=TEXTS), "00000_stats.json": "{}"},
        {"image": "jpg", "caption": "caption"},
    ),
    "imagefolder: `metadata.jsonl`": Layout(
        {"train/a.png": image(0), "train/metadata.jsonl": lines({"file_name": "a.png", "text": "a"})}
    ),
    "imagefolder: `metadata.csv`": Layout(
        {"a.png": image(0), "b/c.png": image(1), "metadata.csv": 'file_name,text\na.png,"a, b"\nb/c.png,c\n'}
    ),
    "imagefolder: `metadata.parquet`": Layout(
        {"a.png": image(0), "b.png": image(1), "metadata.parquet": table(file_name=["b.png", "a.png"], text=TEXTS[:2])}
    ),
    "hub repository: `data/train-*.parquet`": Layout(
        {
            "data/train-00000-of-00001.parquet": table(image=images(3), text=TEXTS),
            "README.md": "a card",
            ".gitattributes": "",
        }
    ),
    "hub repository: tables and a picture of the card": Layout(
        {"data/train-00000-of-00001.parquet": table(image=images(3), text=TEXTS), "assets/preview.png": image(7)}
    ),
    "hub cache: `snapshots/` of links": Layout(
        {
            "blobs/1f": table(image=images(2), text=TEXTS[:2]),
            "snapshots/9e/data/train.parquet": link("../../../blobs/1f"),
            "refs/main": "9e",
        }
    ),
    "hub cache: images and `metadata.jsonl` as links": Layout(
        {
            **{f"blobs/{number}f": image(number) for number in range(2)},
            "blobs/3f": lines(*({"file_name": f"{name}.png", "text": name} for name in "ab")),
            **{f"snapshots/9e/{name}.png": link(f"../../blobs/{n}f") for n, name in enumerate("ab")},
            "snapshots/9e/metadata.jsonl": link("../../blobs/3f"),
        }
    ),
    "a network disk: `#snapshot`, `@Recycle`": Layout(captioned("a", "#snapshot/daily/a", "@Recycle/b")),
    "`save_to_disk`": Layout({"set": lambda file: making.on_disk(file, 4)}),
    "`save_to_disk` with splits": Layout({"train": lambda file: making.on_disk(file, 4), "dataset_dict.json": "{}"}),
    "a table of base64": Layout({"a.parquet": table(image=[base64.b64encode(image(0)).decode()], text=["a"])}),
    "a table of paths": Layout(
        {"a.png": image(0), "b.png": image(1), "t.parquet": table(image=["a.png", "b.png"], text=TEXTS[:2])}
    ),
    "WebDataset: dots in names": Layout({"a.tar": tar(captioned("0000", "22.05", "22.06"))}),
    "WebDataset: shards on two levels, one packed": Layout(
        {"a.tar": tar(captioned("a")), "more/b.tar": tar(captioned("b", "c")), "c.tar.gz": b"\x1f\x8b"}
    ),
    "WebDataset: labels and segmentations": Layout(
        {"a.tar": tar(captioned("d/0.jpg", kind="JPEG") | {"d/0.cls": "3", "d/0.seg.png": image(3)})}
    ),
    "a zip file from macOS": Layout(PAIR | {"__MACOSX/._a.png": b"\0\5", "._b.png": b"\0\5", "._b.txt": b"\xff"}),
    "Jupyter: `.ipynb_checkpoints`": Layout(captioned("a") | captioned(".ipynb_checkpoints/a-checkpoint")),
    "a Synology disk: `@eaDir`": Layout(captioned("a") | {"@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": image(3, "JPEG")}),
    "a phone: HEIC, films, Display P3": Layout(
        captioned("IMG_1.JPG", kind="JPEG")
        | {"IMG_2.HEIC": b"x", "IMG_3.MOV": b"x", "IMG_4.AAE": "<xml>"}
        | {"IMG_5.png": image(5, icc_profile=icc.rgb(icc.DISPLAY_P3, 2.2)), "IMG_5.txt": "a wall"}
    ),
    "a browser: `.jfif`, `.avif`, names without suffix": Layout(
        captioned("a.jfif", kind="JPEG") | captioned("b.avif", kind="AVIF") | {"c": image(1), "d.jpg?w=9": image(2)}
    ),
    "git without LFS": Layout(captioned("a") | {"b.png": LFS, "b.txt": "b"}),
    "links to folders elsewhere": Layout(
        captioned("set/a", "elsewhere/b", "elsewhere/c") | {"set/more": link("../elsewhere"), "set/up": link("..")}
    ),
    "a backup beside images: `.tar`": Layout(PAIR | {"backup.tar": tar(captioned("c"))}),
    "a backup beside images: `.zip`": Layout(PAIR | {"backup.zip": b"PK"}),
    "two texts for one image": Layout(captioned("a") | {"a.png.txt": "another"}),
    "DreamBooth: images alone": Layout({"a.png": image(0), "b.png": image(1)}),
    "COCO: one JSON file for all": Layout({"train/a.png": image(0), "annotations/captions.json": "{}"}),
    "null in JSON, a text beside it": Layout({"a.png": image(0), "a.json": '{"text": null}', "a.txt": "a"}),
}
# where data.train is not the layout's own folder
ROOTS = {
    "hub cache: `snapshots/` of links": "snapshots/9e",
    "links to folders elsewhere": "set",
    "`save_to_disk`": "set",
}
