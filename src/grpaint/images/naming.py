"""The one rule of what a file in a data set is: read as an image, a shard or a table, left out, or none of its images.

It holds alike for the files of a folder and for the members of a tar shard. Whatever looks like an image, by its name
or its first bytes, is read or left out with one of the reasons here; the rest (captions, caches, cards) is no image.
"""

import re
from pathlib import PurePath
from typing import Literal

from grpaint.images.pictures import OTHER_FORMAT, SUFFIXES, looks_like_picture

Kind = Literal["image", "shard", "parquet", "arrow", "metadata", "splits", "left out", "unknown", "other"]

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
HIDDEN_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information"),
}  # of macOS, network disks, Linux and Windows, in small letters
MASK_ENDS = ("-masklabel", "-condlabel")  # OneTrainer's masks and conditions, beside their images
HIDDEN, MASK = "hidden, or a copy that a system keeps", "a mask of another image"
ARCHIVE = "an archive; unpack it"
MISNAMED = "an image whose name does not end as an image's"
CACHE = "a cache of the datasets package"
MISNAMED_TABLE = "a table whose name does not end in .parquet or .arrow"
LINK_TO_NOTHING, NOT_REGULAR = "a link to nothing", "not a regular file"

TABLES: dict[str, Kind] = {".tar": "shard", ".parquet": "parquet", ".arrow": "arrow"}
_OTHER_FORMATS = (
    *(".heic", ".heif", ".heics", ".hif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpm", ".jpx", ".jxr", ".wdp", ".jxs"),
    *(".psd", ".psb", ".xcf", ".kra", ".clip", ".sai", ".sai2", ".procreate", ".svg", ".svgz", ".eps", ".ai", ".wmf"),
    *(".ico", ".icns", ".cur", ".tga", ".dds", ".exr", ".hdr", ".pcx", ".qoi", ".fits", ".bpg", ".flif", ".emf"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf"),
    *(".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".fff", ".iiq", ".erf", ".mrw", ".kdc", ".dcr"),
    *(
        ".mp4",
        ".m4v",
        ".webm",
        ".mov",
        ".mkv",
        ".avi",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".3gp",
        ".ogv",
        ".mts",
        ".m2ts",
    ),
    *(".gifv", ".mng", ".swf", ".ugoira", ".pq", ".parq", ".feather", ".orc", ".avro", ".tfrecord", ".tfrecords"),
    *(".lance", ".mdb", ".beton", ".mds", ".rec", ".h5", ".hdf5"),
)
_CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow")
_PARTED_FORMAT = re.compile(r"\.tfrecords?-\d+-of-\d+$")
_ARCHIVES = (
    *(".zip", ".cbz", ".7z", ".cb7", ".rar", ".cbr", ".cbt", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tlz", ".iso"),
    *(".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".lz", ".lzma", ".z", ".br"),
)
_PARTED_ARCHIVE = re.compile(r"\.((zip|7z|rar|tar|gz)\.\d+|[rz]\d\d)$")
_OTHERS = (
    *(".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".md", ".yaml", ".yml", ".toml", ".xml", ".html", ".log"),
    *(".npz", ".npy", ".pt", ".pth", ".safetensors", ".bin", ".cls", ".py", ".ipynb", ".lock", ".sqlite", ".db"),
)


def kind_of(name: str) -> Kind:
    """Return what a file is by its name alone, in capitals or not; "unknown" may be an image by its first bytes."""
    name = name.lower()
    suffix = PurePath(name).suffix
    if name in METADATA_NAMES:
        return "metadata"
    if name == "dataset_dict.json":
        return "splits"
    if suffix in SUFFIXES:
        return "image"
    if suffix in TABLES:
        return TABLES[suffix]
    if suffix in _OTHER_FORMATS or _PARTED_FORMAT.search(name) or _is_archive(name):
        return "left out"
    return "other" if suffix in _OTHERS else "unknown"


def _is_archive(name: str) -> bool:
    return PurePath(name).suffix in _ARCHIVES or bool(_PARTED_ARCHIVE.search(name))


def is_hidden(name: str) -> bool:
    """Whether a folder or file of this name is hidden, or is kept by a system for itself."""
    return name.startswith(".") or name.lower() in HIDDEN_FOLDERS


def reason_left_out(name: str, stems: frozenset[str] | set[str], head: bytes) -> str:
    """Return why a file that is not hidden is left out, or "" if it is read or is none of the set's images.

    ``stems``: the names without suffix of the images beside it. ``head``: its first bytes, if its kind is "unknown".
    """
    kind, stem = kind_of(name), PurePath(name).stem
    if kind == "left out":
        return ARCHIVE if _is_archive(name.lower()) else OTHER_FORMAT
    if kind == "image" and any(stem.removesuffix(end) in stems for end in MASK_ENDS if stem.endswith(end)):
        return MASK
    if _CACHE.fullmatch(name):
        return CACHE
    if kind == "unknown" and head.startswith((b"PAR1", b"ARROW1")):
        return MISNAMED_TABLE
    return MISNAMED if kind == "unknown" and looks_like_picture(head) else ""
