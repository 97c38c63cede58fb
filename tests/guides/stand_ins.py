"""Everything that the guide of an evening needs, tiny: a checkpoint in one file, pictures with tags, two scorers.

    PYTHONPATH=src:tests python tests/guides/stand_ins.py FOLDER

makes a folder in which the commands of docs/guides/sdxl-lora-24gb.md run on a CPU as they are written there.
"""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import tomli_w
from PIL import Image
from safetensors.torch import save_file

from grpaint.images.drawn import draw_set
from grpaint.recipe.config import override
from original_layout import original
from tiny_scorers import clip_folder, head_tensors
from tiny_unets import sdxl

ROOT = Path(__file__).parent.parent.parent
GUIDE = ROOT / "docs/guides/sdxl-lora-24gb.md"
RECIPES = ROOT / "examples/sdxl-lora-24gb"
PICTURES = 40


def make(folder: Path) -> None:
    """Fill a folder, which may be empty or new."""
    (folder / "models").mkdir(parents=True)
    pipe = sdxl(transformer_layers_per_block=(1, 1))
    save_file(original(pipe), folder / "models/checkpoint.safetensors")
    pipe.save_pretrained(folder / "models/sdxl-settings")
    clip_folder(folder / "weights/pick")
    clip_folder(folder / "weights/clip")
    save_file(head_tensors(16), folder / "weights/aesthetic.safetensors")
    draw_pictures(folder / "pictures")
    for name, sets in small_settings().items():
        table = tomllib.loads((RECIPES / name).read_text(encoding="utf-8"))
        (folder / name).write_text(tomli_w.dumps(override(table, sets)), encoding="utf-8")


def draw_pictures(folder: Path) -> None:
    """Pictures of three shapes with their tags in text files, one picture twice and one cut short."""
    draw_set(folder, PICTURES, 1, 0, 64, lambda _: None)
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        tags = re.search(r'"tag_string_general": "(.*?)"', file.with_suffix(".json").read_text(encoding="utf-8"))
        assert tags
        picture = Image.open(file).crop(((0, 0, 64, 64), (0, 0, 48, 64), (0, 0, 64, 48))[number % 3])
        picture.save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"flatland, {', '.join(tags[1].split())}\n", encoding="utf-8")
    for name in ("train", "held-out"):
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    for suffix in (".png", ".txt"):
        (folder / f"copy{suffix}").write_bytes((folder / f"004{suffix}").read_bytes())
    (folder / "broken.png").write_bytes((folder / "000.png").read_bytes()[:300])
    (folder / "broken.txt").write_text("flatland, blue_circle\n", encoding="utf-8")


def small_settings() -> dict[str, list[str]]:
    """The ``--set`` items of the guide's last section, by recipe."""
    text = GUIDE.read_text(encoding="utf-8")
    lines = re.findall(r"^(\w+\.toml) +(.+)$", text.split("## Without a card")[1], re.M)
    out: dict[str, list[str]] = {}
    for name, items in lines:
        out.setdefault(name, []).extend(shlex.split(items))
    return out


def commands() -> list[list[str]]:
    """The guide's commands, each as its words, in order."""
    text = GUIDE.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^(?:\$ )?(grpaint .*)$", text, re.M)]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
