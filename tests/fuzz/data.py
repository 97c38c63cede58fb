"""Data files of every kind, damaged and foreign: each ends in a result or in one line, in a process of its own."""

import contextlib
import io
import json
import os
import random
import shutil
import string
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import Tally, cases, command, in_child

SECONDS = 25.0  # a case that takes longer counts as one that hangs
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "a\ud800b",
    "\x1b]0;t\x07",
    "[/b]",
    "x" * 100_000,
    "\u202e",
    "../../x.png",
    "/etc/passwd",
    "円",
)
ODD_NUMBERS = (0, -1, 1e308, -1e308, 2**63, 2**64, 10**300, 0.1, float("nan"), float("inf"))
ODD_JSON = ("[" * 3000, "9" * 5000, "{", "nul", '"\\ud800"', '{"text": 1e999}', "\ufeff{}", '{"text": "a"', "\0")
SETS = (
    "threads=1", "device=cpu", "precision=fp32", "model.start=random", "anchor=none", "plan.steps=4",
    "train.iterations=1", "train.prompts=2", "train.group_size=4", "checkpoint.every=1", "evaluate.guided=[]",
    "evaluate.pictures=0", "evaluate.prompts=4", "evaluate.steps=2", "evaluate.probe=4",
)  # fmt: skip
SHORT = [word for item in SETS for word in ("--set", item)]
SUFFIXES = (".png", ".jpg", ".webp", ".bmp", ".gif", ".tif", ".avif", ".jfif", ".heic", ".png~", "")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "EPS", "PPM", "ICO", "TGA", "PCX", "PDF", "JPEG2000", "AVIF")


def value(rng: random.Random, depth: int = 0) -> Any:
    """A value of any type that JSON has, an odd one more often than not."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice(ODD_NUMBERS),
        lambda: rng.choice(ODD_TEXTS),
        lambda: "".join(rng.choices(string.printable, k=rng.randrange(20))),
    ]
    if depth < 3:
        kinds += [
            lambda: [value(rng, depth + 1) for _ in range(rng.randrange(4))],
            lambda: {
                rng.choice(["text", "a", "bytes", "path"]): value(rng, depth + 1) for _ in range(rng.randrange(4))
            },
        ]
    return rng.choice(kinds)()


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """The bytes with some turned, cut out, doubled, zeroed or put in."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if not data:
            break
        at, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + length] = rng.randbytes(length)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                data[at : at + length] = rng.choice((b"\0", b"\xff", b"\x80")) * length
    return bytes(data)


def picture(number: int, form: str = "PNG", rng: random.Random | None = None) -> bytes:
    """A small picture."""
    from PIL import Image

    modes = {"GIF": "P", "TIFF": "RGB", "EPS": "RGB"}
    mode = rng.choice(("RGB", "L", "RGBA", "P", "1", "I;16")) if rng and form in ("PNG", "TIFF") else "RGB"
    image = Image.new("RGB", (32, 32), (number * 9 % 255, 90, 200)).convert(modes.get(form, "RGB"))
    into = io.BytesIO()
    try:
        (image.convert(mode) if mode != "I;16" else Image.new("I;16", (8, 8), 700)).save(into, form)
    except (OSError, ValueError):
        image.convert("RGB").save(into, form)
    return into.getvalue()


def labelled(number: int, rng: random.Random) -> bytes:
    """A PNG or JPEG with a profile, EXIF or text, each whole or damaged."""
    from PIL import Image, ImageCms, PngImagePlugin

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"RGB ", rng.choice((b"RGB ", b"GRAY", b"CMYK", b"Lab ")), 1)
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 3, 6, 99))
    text = PngImagePlugin.PngInfo()
    text.add_itxt(
        "XML:com.adobe.xmp", rng.choice(ODD_TEXTS[2:3] + ODD_TEXTS[6:]) * rng.choice((1, 30)), zip=rng.random() < 0.5
    )
    image, into = Image.new(rng.choice(("RGB", "L", "RGBA", "P")), (32, 32), number), io.BytesIO()
    labels = {"icc_profile": damaged(profile, rng), "exif": damaged(exif.tobytes(), rng)}
    form = rng.choice(("PNG", "JPEG"))
    (image if form == "PNG" else image.convert("RGB")).save(into, form, pnginfo=text, **labels)
    return into.getvalue()


def folder(root: Path, count: int = 8) -> Path:
    """A folder of whole captioned images, to which a case adds what is wrong."""
    root.mkdir()
    for number in range(count):
        (root / f"{number}.png").write_bytes(picture(number))
        (root / f"{number}.txt").write_text(f"picture {number}")
    return root


def pictures(root: Path, rng: random.Random) -> list[str]:
    """Image files, damaged or of another format than their names say."""
    folder(root)
    for number in range(8, 11):
        raw = picture(number, rng.choice(FORMATS), rng) if rng.random() < 0.6 else labelled(number, rng)
        (root / f"{number}{rng.choice(SUFFIXES)}").write_bytes(damaged(raw, rng) if rng.random() < 0.8 else raw)
        (root / f"{number}.txt").write_text("odd")
    return ["data", "scan", str(root)]


def sidecars(root: Path, rng: random.Random) -> list[str]:
    """Sidecars of JSON and text, one of them with any value in any column."""
    folder(root)
    names = ("text", "tag_string", "tags", "rating", "score", "tags_general", "tag_string_artist", "file", "reference")
    for number in range(8):
        fields = {"tag_string": "a b_c", "rating": "g", "score": number}
        if number == 3:
            fields |= {rng.choice(names): value(rng) for _ in range(rng.choice((1, 1, 3)))}
        text = rng.choice(ODD_JSON) if number == 5 and rng.random() < 0.2 else json.dumps(fields)
        raw = text.encode("utf-8", "surrogatepass")
        (root / f"{number}.json").write_bytes(damaged(raw, rng) if number == 6 and rng.random() < 0.3 else raw)
        if rng.random() < 0.1:
            (root / f"{number}.txt").unlink()
    return data_command(root, rng)


def metadata(root: Path, rng: random.Random) -> list[str]:
    """A metadata.jsonl or .csv whose lines name what they like."""
    folder(root)
    for number in range(8):
        (root / f"{number}.txt").unlink()
    lines = [{"file_name": f"{number}.png", "text": f"picture {number}", "a": number} for number in range(8)]
    for _ in range(rng.choice((1, 1, 3))):
        rng.choice(lines)[rng.choice(("file_name", "text", "a", "score", "b"))] = value(rng)
    suffix = rng.choice((".jsonl", ".jsonl", ".csv"))
    texts = [json.dumps(line) for line in lines]
    if suffix == ".csv":
        texts = ["file_name,text,a", *(f"{line['file_name']},{line['text']},{line['a']}" for line in lines)]
    if rng.random() < 0.2:
        texts[4] = rng.choice(ODD_JSON)
    raw = rng.choice(("\n", "\r\n", "\n\n", "\u2028")).join(texts).encode("utf-8", "surrogatepass")
    (root / f"metadata{suffix}").write_bytes(damaged(raw, rng) if rng.random() < 0.2 else raw)
    return data_command(root, rng)


def data_command(root: Path, rng: random.Random) -> list[str]:
    """A command that reads captions or tags."""
    share = ["--set", "data.held_out_share=0.5"]
    tags = rng.choice(
        (
            [],
            [],
            [],
            ["--set", "data.tags={}"],
            ["--set", 'data.tags={ratings=["general"]}'],
            ["--set", 'data.tags={categories=["quality","general"],quality={good=0.5}}'],
            ["--set", 'data.report_by="a"'],
        )
    )
    if rng.random() < 0.5:
        return ["data", "scan", str(root), *share, *tags]
    return ["data", "captions", str(root), "--out", str(root.parent / "c.txt"), *share, *tags]


def names(root: Path, rng: random.Random) -> list[str]:
    """Files with names that are no UTF-8, or hold escapes, markup and line ends; pipes, loops and dangling links."""
    folder(root)
    stem = rng.choice((b"\xff\xfe", b"a\nb", b"\x1b[31m", b"[bold]", b"x" * 240, b" ", b"\xe2\x80\xae", b"-", b"..."))
    place = os.path.join(os.fsencode(root), stem)
    match rng.randrange(5):
        case 0 | 1:
            for suffix, raw in ((b".png", picture(7)), (rng.choice((b".txt", b".json")), b"{}")):
                with open(place + suffix, "wb") as file:
                    file.write(raw if rng.random() < 0.8 else b"junk")
        case 2:
            os.mkfifo(place + rng.choice((b".png", b".txt", b".tar", b".parquet", b".arrow")))
            if rng.random() < 0.5:
                os.mkfifo(root / rng.choice(("0.json", "metadata.jsonl", "0.png.json")))
        case 3:
            os.symlink(rng.choice((b"nowhere", os.fsencode(root), b"/dev/zero", b"/dev/stdin")), place + b".png")
            os.symlink(rng.choice((b"..", b".", b"/dev", os.fsencode(root), place)), place + b" of a folder")
        case 4:
            os.mkdir(place)
            with open(os.path.join(place, b"p.png"), "wb") as file:
                file.write(picture(8))
    return data_command(root, rng)


def shards(root: Path, rng: random.Random) -> list[str]:
    """Tar shards with headers of any size, extended headers, and turned bytes."""
    root.mkdir()
    into = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=into, mode="w", format=form) as tar:
        for number in range(8):
            odd = rng.choice((f"d/{number}", "0.5", "._0", "__MACOSX/a", "/", ".", "x" * 150, "[/b]", "円", "../up"))
            stem = odd if rng.random() < 0.2 else f"{number}"
            for suffix, raw in ((".png", picture(number)), rng.choice(((".txt", b"a"), (".json", b'{"text": "a"}')))):
                member = tarfile.TarInfo(stem + suffix)
                member.size = len(raw)
                if rng.random() < 0.1:
                    member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE))
                    member.linkname = rng.choice(("0.png", "../0.png", "/etc/passwd", stem + suffix, "", "円"))
                if form == tarfile.PAX_FORMAT and rng.random() < 0.1:
                    odd = rng.choice(("size", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "path", "mtime"))
                    member.pax_headers = {odd: rng.choice(("-1", "abc", "9" * 30, "0,1", "1", "\ud800"))}
                try:
                    tar.addfile(member, io.BytesIO(raw))
                except (ValueError, UnicodeError):
                    continue
    raw_tar = bytearray(into.getvalue())
    for _ in range(rng.choice((0, 0, 1, 2))):
        at = 512 * rng.randrange(max(1, len(raw_tar) // 512))
        begin, length = rng.choice(
            ((124, 12), (156, 1), (0, 100), (100, 24), (136, 12), (345, 155), (257, 8), (148, 8))
        )
        odd = rng.choice(
            (b"\xff" * 11 + b"\xfb", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"77777777777\0", b"x", b"S", b"L")
        )
        raw_tar[at + begin : at + begin + length] = odd[:length].ljust(length, b"\0")
        raw_tar[at + 148 : at + 156] = b" " * 8
        raw_tar[at + 148 : at + 156] = b"%06o\0 " % (sum(raw_tar[at : at + 512]) % 8**6)
    raw_bytes = bytes(raw_tar)
    (root / "a.tar").write_bytes(damaged(raw_bytes, rng) if rng.random() < 0.3 else raw_bytes)
    return data_command(root if rng.random() < 0.5 else root / "a.tar", rng)


def table(rng: random.Random) -> Any:
    """A table of images, half of the time with an odd column."""
    import pyarrow

    columns: dict[str, Any] = {
        "image": [{"bytes": picture(n), "path": None} for n in range(8)],
        "text": [f"picture {n}" for n in range(8)],
        "score": list(range(8)),
        "rating": ["g"] * 8,
    }
    odd: dict[str, Sequence[Any]] = {
        "image": (
            [picture(n) for n in range(8)],
            ["0.png", "../0.png", "/etc/passwd", "a\0", "", ".", "x" * 5000, "円"],
            [None, b"", b"junk", None] * 2,
            ["iVBORw0KGgo=", "data:image/png;base64,", "data:,", "A" * 9000, "=", "-_", " ", "/9j/"],
            list(range(8)),
            [[picture(n)] for n in range(8)],
        ),
        "text": ([None] * 8, list(range(8)), [["a"], [], None, ["b"]] * 2, ["a", None, "\0", "c"] * 2, [b"\xff"] * 8),
        "score": ([1.0, None, float("nan"), float("inf")] * 2, ["high"] * 8, [True] * 8, [datetime.now(UTC)] * 8),
        "rating": (["g", "s", None, "x"] * 2, [["g"]] * 8, [1] * 8),
    }
    if rng.random() < 0.6:
        name = rng.choice(list(odd))
        columns[name] = rng.choice(odd[name])
    made = pyarrow.table(columns)
    if rng.random() < 0.3 and made["text"].type == pyarrow.string():
        made = made.set_column(1, "text", made["text"].dictionary_encode())
    return made.append_column(rng.choice(("text", "image", "")), made["score"]) if rng.random() < 0.1 else made


def parquet(root: Path, rng: random.Random) -> list[str]:
    """Parquet files with odd columns and turned bytes."""
    import pyarrow.parquet

    root.mkdir()
    codec = rng.choice(("snappy", "none", "gzip", "zstd"))
    pyarrow.parquet.write_table(table(rng), root / "a.parquet", compression=codec, use_dictionary=rng.random() < 0.5)
    raw = (root / "a.parquet").read_bytes()
    (root / "a.parquet").write_bytes(damaged(raw, rng) if rng.random() < 0.5 else raw)
    return data_command(root, rng)


def arrow(root: Path, rng: random.Random) -> list[str]:
    """Arrow streams as of a data set on disk, with odd columns, a damaged state.json and turned bytes."""
    import pyarrow

    root.mkdir()
    made = table(rng)
    with pyarrow.ipc.new_stream(root / "data.arrow", made.schema) as stream:
        stream.write_table(made)
    raw = (root / "data.arrow").read_bytes()
    (root / "data.arrow").write_bytes(damaged(raw, rng) if rng.random() < 0.5 else raw)
    if rng.random() < 0.3:
        whole = [{"filename": "data.arrow"}]
        listed = rng.choice((whole, whole, [{"filename": "../x"}], value(rng), [value(rng)]))
        (root / "state.json").write_text(
            json.dumps({"_data_files": listed, "_indices_data_files": rng.choice((None, []))})
        )
    return data_command(root, rng)


def prompts(root: Path, rng: random.Random) -> list[str]:
    """Prompt files of each form, read as `data prompts` and training do."""
    root.mkdir()
    (root / "0.png").write_bytes(picture(0))
    suffix = rng.choice((".txt", ".jsonl", ".csv"))
    rows: list[dict[str, Any]] = [{"prompt": f"a red circle {n}", "reference": "0.png"} for n in range(8)]
    for _ in range(rng.choice((0, 1, 3))):
        rng.choice(rows)[rng.choice(("prompt", "reference"))] = value(rng)
    if suffix == ".txt":
        text = "\n".join(str(row["prompt"]) for row in rows)
    elif suffix == ".jsonl":
        text = "\n".join(json.dumps(row) if rng.random() < 0.98 else rng.choice(ODD_JSON) for row in rows)
    else:
        text = "prompt,reference\n" + "\n".join(f"{row['prompt']},{row['reference']}" for row in rows)
    raw = text.encode("utf-8", "surrogatepass")
    (root / f"p{suffix}").write_bytes(damaged(raw, rng) if rng.random() < 0.2 else raw)
    words = ["read prompts", str(root / f"p{suffix}")]
    return [*words, "references"] if rng.random() < 0.4 else words


def weights(root: Path, rng: random.Random) -> list[str]:
    """A model's safetensors file with a damaged header or tensor, or foreign labels, opened as commands do."""
    from safetensors.torch import load, save

    root.mkdir()
    whole = next((root.parents[1] / "runs/it/checkpoints").iterdir()) / "model.safetensors"
    recipe = {"recipe": {"model": {"kind": "scenes"}, "evaluate": {"steps": 2}}}
    if rng.random() < 0.5:
        holder = rng.choice([recipe, recipe["recipe"], *recipe["recipe"].values()])
        holder[rng.choice(("recipe", "model", "evaluate", "kind", "steps", "sampler", "start"))] = value(rng)
    text = rng.choice(ODD_JSON) if rng.random() < 0.1 else json.dumps(recipe)
    labels = {
        "grpaint": text.encode("utf-8", "replace").decode(),
        "parametrisation": rng.choice(("velocity", "epsilon", "x")),
    }
    raw = save(load(whole.read_bytes()), labels) if rng.random() < 0.6 else whole.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, tensors = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    match rng.randrange(5):
        case 0:
            raw = damaged(raw, rng)
        case 1:
            raw = damaged(raw[: 8 + length], rng) + tensors
        case 2:
            header[rng.choice((name, "__metadata__", "c"))] = value(rng)
        case 3:
            header[name][rng.choice(("data_offsets", "shape", "dtype"))] = rng.choice(
                (value(rng), [0, 2**63], [-1, 4], "F8_E4M3")
            )
    if raw[:8] == length.to_bytes(8, "little"):
        new = json.dumps(header).encode()
        size = rng.choice((2**63, 2**40, 0)) if rng.random() < 0.1 else len(new)
        raw = size.to_bytes(8, "little") + new + tensors
    (root / "w.safetensors").write_bytes(raw)
    return rng.choice(
        (
            ["sample", str(root / "w.safetensors"), "a red circle", "--out", str(root / "out"), "--steps", "1"],
            ["sample", str(root / "w.safetensors"), "a red circle", "--out", str(root / "out"), "--steps", "1"],
            [
                "train",
                "scenes/mix-grpo",
                "--runs",
                str(root / "runs"),
                *SHORT,
                "--set",
                f"model.start={root / 'w.safetensors'}",
            ],
            ["read header", str(root / "w.safetensors")],
        )
    )


def torch_files(root: Path, rng: random.Random) -> list[str]:
    """Torch files that are damaged or hold something other than tensors."""
    import torch

    root.mkdir()
    stored: Any = rng.choice(({"a": torch.zeros(3)}, [1], torch.zeros(2), {"a": {1, 2}}, {"a": value(rng)}))
    torch.save(stored, root / "w.pt", _use_new_zipfile_serialization=rng.random() < 0.6)
    raw = (root / "w.pt").read_bytes()
    (root / "w.pt").write_bytes(damaged(raw, rng) if rng.random() < 0.8 else raw)
    return ["read torch", str(root / "w.pt")]


def drawn(root: Path, rng: random.Random) -> list[str]:
    """Pictures for ``sample --like`` whose text says anything."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    root.mkdir()
    with Image.open(next((root.parents[1] / "drawn").iterdir())) as image:
        facts = json.loads(image.info["grpaint"])
    for _ in range(rng.choice((0, 1, 2))):
        holder = rng.choice([facts, facts["sampler"], facts["model"]])
        if isinstance(holder, dict):
            holder[rng.choice([*holder, 'kind="a:b" #', "a.b", ""])] = value(rng)
    text = PngInfo()
    text.add_text("grpaint", json.dumps(facts) if rng.random() < 0.8 else rng.choice(ODD_JSON), zip=rng.random() < 0.3)
    Image.new("RGB", (32, 32)).save(root / "p.png", pnginfo=text)
    raw = (root / "p.png").read_bytes()
    (root / "p.png").write_bytes(damaged(raw, rng) if rng.random() < 0.3 else raw)
    source = [str(root.parents[1] / "runs/it")] if rng.random() < 0.5 else []
    return ["sample", *source, "--like", str(root / "p.png"), "--out", str(root / "out")]


def pipelines(root: Path, rng: random.Random) -> list[str]:
    """A small pipeline's folder with a damaged or foreign file among its settings, tokenizers and weights."""
    shutil.copytree(root.parents[1] / "sd15", root)
    file = rng.choice(sorted(file for file in root.rglob("*") if file.is_file()))
    raw = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.7:
        fields = json.loads(raw)
        holder = rng.choice([fields, *(item for item in fields.values() if isinstance(item, dict))])
        for _ in range(rng.choice((1, 1, 3))):
            holder[rng.choice([*holder, "auto_map", "_class_name"])] = value(rng)
        raw = (
            json.dumps(fields).encode() if rng.random() < 0.9 else rng.choice(ODD_JSON).encode("utf-8", "surrogatepass")
        )
    else:
        raw = damaged(raw, rng)
    file.write_bytes(raw)
    if rng.random() < 0.1:
        file.unlink()
    return ["open pipeline", str(root)]


KINDS = (pictures, sidecars, metadata, names, shards, parquet, arrow, prompts, weights, torch_files, drawn, pipelines)


def perform(words: list[str]) -> tuple[str, str]:
    """Run a case: a command, or one of the readers that commands use once weights are there."""
    from grpaint.backends.diffusers import Diffusers
    from grpaint.core.errors import GrpaintError
    from grpaint.core.runtime import Runtime
    from grpaint.images.prompts import PromptData
    from grpaint.storage import files

    readers: dict[str, Callable[[Path], object]] = {
        "read prompts": lambda file: PromptData(
            str(file), held_out_share=0.4, references="references" in words, resolution=8
        ).prepare(str),
        "read header": files.read_header,
        "read weights": files.read_weights,
        "read torch": files.read_torch,
        "open pipeline": lambda folder: Diffusers(str(folder), height=16, width=16).load(Runtime()),
    }
    if words[0] not in readers:
        return command(*words)
    try:
        readers[words[0]](Path(words[1]))
    except (GrpaintError, ValueError) as error:
        one_line = "\n" not in str(error).strip() and isinstance(error, GrpaintError)
        return ("refused" if one_line else "not a line"), f"{type(error).__name__}: {error}"[:300]
    return "done", ""


def run(seed: int, minutes: float, most: int, kinds: tuple[str, ...] = ()) -> Tally:
    """Try up to ``most`` files of all kinds in turn; ``kinds`` chooses some by name."""
    import grpaint.commands.data
    import grpaint.commands.sample.command
    import grpaint.commands.show  # noqa: F401  imported once, before the forks
    from small_network import small_network
    from tiny_pipelines import save, stock

    chosen = [kind for kind in KINDS if not kinds or kind.__name__ in kinds]
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="grpaint-fuzz-") as place, contextlib.ExitStack() as stack:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        os.chdir(place)
        stack.enter_context(small_network())
        for words in (
            ["train", "mix-grpo", "--name", "it", *SHORT],
            ["sample", "runs/it", "a red circle", "--out", f"{place}/drawn"],
        ):
            outcome, text = command(*words)
            assert outcome == "done", text
        if pipelines in chosen:
            stock(save("sd15", Path(place)))  # opened once, for what it imports
        for number, rng in cases(seed, minutes, most):
            kind, root = chosen[number % len(chosen)], Path(place, "case")
            root.mkdir()
            words = kind(root / "set", rng)
            outcome, text = in_child(lambda words=words: perform(words), SECONDS)  # type: ignore[misc]
            tally.add(kind.__name__, outcome, f"case {number}: {' '.join(words)}: {text}")
            shutil.rmtree(os.fsencode(root), ignore_errors=True)
    return tally
