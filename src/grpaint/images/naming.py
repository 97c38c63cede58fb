"""The one rule of what a file in a data set is: read as an image, a shard or a table, left out, or none of its images.

It holds alike for the files of a folder and for the members of a tar shard. Whatever looks like an image, by its name
or its first bytes, is read or left out with one of the reasons here; the rest (captions, caches, cards) is no image.
"""

from pathlib import PurePath
from typing import Literal

from grpaint.images.pictures import SUFFIXES, looks_like_picture

Kind = Literal["image", "shard", "parquet", "arrow", "metadata", "splits", "left out", "unknown", "other"]

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
HIDDEN_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN"}  # of macOS, Synology and Windows
MASK_ENDS = ("-masklabel", "-condlabel")  # OneTrainer's masks and conditions, beside their images
HIDDEN, MASK = "hidden, or a copy that a system keeps", "a mask of another image"
OTHER_FORMAT, ARCHIVE = "a format that is not read", "an archive; unpack it"
MISNAMED = "an image whose name does not end as an image's"
LINK_TO_NOTHING, NOT_REGULAR = "a link to nothing", "not a regular file"

TABLES: dict[str, Kind] = {".tar": "shard", ".parquet": "parquet", ".arrow": "arrow"}
_OTHER_FORMATS = (
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jxr", ".psd", ".psb", ".xcf", ".kra", ".clip"),
    *(".svg", ".eps", ".ai", ".ico", ".icns", ".tga", ".dds", ".exr", ".hdr", ".pcx", ".qoi", ".fits", ".cur"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    *(".mp4", ".webm", ".mov", ".mkv", ".avi", ".gifv", ".mng", ".swf", ".ugoira", ".pq", ".parq", ".feather"),
    *(".tfrecord", ".lance", ".mdb", ".beton", ".h5", ".hdf5"),
)
_ARCHIVES = (
    ".zip",
    ".cbz",
    ".7z",
    ".rar",
    ".cbr",
    ".tgz",
    ".tbz",
    ".tbz2",
    ".txz",
    ".tzst",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
)
_OTHERS = (
    *(".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".md", ".yaml", ".yml", ".toml", ".xml", ".html", ".log"),
    *(".npz", ".npy", ".pt", ".pth", ".safetensors", ".bin", ".cls", ".py", ".ipynb", ".lock", ".sqlite", ".db"),
)


def kind_of(name: str) -> Kind:
    """Return what a file is by its name alone; "unknown" may be an image by its first bytes."""
    suffix = PurePath(name).suffix.lower()
    if name in METADATA_NAMES:
        return "metadata"
    if name == "dataset_dict.json":
        return "splits"
    if suffix in SUFFIXES:
        return "image"
    if suffix in TABLES:
        return TABLES[suffix]
    if suffix in _OTHER_FORMATS or suffix in _ARCHIVES:
        return "left out"
    return "other" if suffix in _OTHERS else "unknown"


def is_hidden(name: str) -> bool:
    """Whether a folder or file of this name is hidden, or is kept by a system for itself."""
    return name.startswith(".") or name in HIDDEN_FOLDERS


def reason_left_out(name: str, stems: frozenset[str] | set[str], head: bytes) -> str:
    """Return why a file that is not hidden is left out, or "" if it is read or is none of the set's images.

    ``stems``: the names without suffix of the images beside it. ``head``: its first bytes, if its kind is "unknown".
    """
    kind, path = kind_of(name), PurePath(name)
    if kind == "left out":
        return ARCHIVE if path.suffix.lower() in _ARCHIVES else OTHER_FORMAT
    if kind == "image" and any(path.stem.removesuffix(end) in stems for end in MASK_ENDS if path.stem.endswith(end)):
        return MASK
    return MISNAMED if kind == "unknown" and looks_like_picture(head) else ""
