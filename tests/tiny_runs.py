"""Runs small enough for a test: the built-in model from random weights, a few prompts, two-step evaluations.

A network that has learned nothing answers 0 whatever it sees, so a checker gives every image the same score. The reward
here adds a pattern over the rows, which makes the weights move; it also commits, in the third iteration (its fourth
call, the first is its self-test), the fault that a file named ``fault`` asks for.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from grpaint import cli
from grpaint.recipe.config import recipe_names
from grpaint.run.pictures import Drawing

EMBEDDED = [name for name in recipe_names() if name.startswith("scenes")]  # the others need real weights
QUICK = (
    "train.iterations=4",
    "train.schedule=constant",  # a longer run of a decaying rate is another run
    "evaluate.every=2",
    "evaluate.guided=[]",
    "evaluate.pictures=1",
    "checkpoint.every=2",
    "device=cpu",
    "precision=fp32",
    "threads=1",
)
TINY = (
    *QUICK,
    "model.start=random",
    "train.prompts=3",
    "train.group_size=4",
    "plan.steps=4",
    "plan.window.high=1",
    "evaluate.prompts=6",
    "evaluate.steps=2",
    "evaluate.probe=6",
)
REWARD = 'rewards={bright={kind="reward.py:score"}}'
TINY_SFT = (
    *(item for item in TINY if not item.startswith(("plan.", "train.prompts", "train.group_size"))),
    "train.batch=4",
    "train.warmup=1",
)

NO_PICTURES = Drawing([], [], "strict", {}, torch.empty(0, 3, 1, 1, dtype=torch.uint8), evaluated=True)

REWARD_FILE = """
import os, resource, signal
from pathlib import Path
import torch

calls = 0

def score(images, prompts):
    global calls
    calls += len(images) != 6  # an evaluation asks too
    fault = Path("fault").read_text() if Path("fault").exists() and calls == 4 else ""
    scores = images.mean((1, 2, 3)) + 0.1 * (torch.arange(len(images)) % 4)
    if fault == "raise":
        raise ValueError("the first line\\nand a second one")
    if fault == "nan":
        scores[5] = float("nan")
    if fault == "short":
        return scores[:-1]
    if fault == "flat":
        return torch.ones(len(images))
    if fault.startswith("SIG"):
        for name in fault.split():
            os.kill(os.getpid(), getattr(signal, name))
    if fault == "small files":
        resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return scores
"""


PIPELINE = """
precision = "fp32"
[model]
kind = "diffusers"
base = "{base}"
guidance = 3.0
height = 32
width = 32
lora = {{ rank = 4 }}
[data]
kind = "scenes"
[plan]
steps = 3
sampler = {{ kind = "{sampler}" }}
[rewards.bright]
kind = "{reward}:bright"
[train]
iterations = 1
prompts = 2
group_size = 2
learning_rate = 1e-2
[evaluate]
prompts = 4
probe = 4
steps = 3
guidance = 3.0
guided = []
pictures = 0
"""


def write_recipe(root: Path, base: str, sampler: str = "ddim") -> None:
    """``mine.toml``: GRPO on a pipeline's folder or hub id in one iteration, brightness its reward."""
    reward = root / "bright.py"
    reward.write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
    (root / "mine.toml").write_text(PIPELINE.format(base=base, sampler=sampler, reward=reward))


def trained(root: Path, base: str) -> Path:
    """A finished run of that recipe, runs/mine, in a folder of its own."""
    write_recipe(root, base)
    with contextlib.chdir(root):
        done = command("train", "mine.toml")
    assert done.code == 0, done.err
    return root


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def flags(*sets: str) -> list[str]:
    """``--set`` before each."""
    return [word for item in sets for word in ("--set", item)]


def command(*words: str, sets: Sequence[str] = ()) -> Ended:
    """``grpaint`` in this process; a traceback of its own goes through."""
    words = (*words, *flags(*sets))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(sys, "argv", ["grpaint", *words])
        out, err = (stack.enter_context(redirect) for redirect in (_Text("stdout"), _Text("stderr")))
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
    return Ended(code, out.text(), err.text())


def without_caption_warnings(err: str) -> str:
    """Standard error but for the line, once a process, that a tiny text encoder reads too few tokens of a caption."""
    return "".join(line for line in err.splitlines(keepends=True) if "grpaint: a caption has" not in line)


class _Text:
    """Catches ``sys.stdout`` or ``sys.stderr``."""

    def __init__(self, name: str) -> None:
        self._name, self._into = name, io.StringIO()

    def __enter__(self) -> "_Text":
        self._before = getattr(sys, self._name)
        setattr(sys, self._name, self._into)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(sys, self._name, self._before)

    def text(self) -> str:
        return self._into.getvalue()


SMALL_MAIN = """
import sys
sys.path.append({folder!r})
from grpaint.cli import main
from small_network import small_network
with small_network():
    main()
"""


def process(*words: str, sets: Sequence[str] = ()) -> subprocess.Popen[str]:
    """``grpaint`` as a process of its own, in the current folder, its built-in model small."""
    program = SMALL_MAIN.format(folder=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", program, *words, *flags(*sets)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
    )


@contextlib.contextmanager
def folder(path: Path, *, keep: bool = True) -> Iterator[Path]:
    """Work in ``path``, with the reward file there; without ``keep`` its checkpoints do not outlive the test."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "reward.py").write_text(REWARD_FILE)
    with contextlib.chdir(path):
        yield path
    if not keep:
        shutil.rmtree(path)


def lines(path: Path) -> list[dict[str, Any]]:
    """A .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file without what may differ between equal runs."""
    may_differ = ("time/", "memory/", "processes/")
    return [{key: value for key, value in line.items() if not key.startswith(may_differ)} for line in lines(path)]


def status(run: Path) -> dict[str, Any]:
    """What run.json says."""
    return json.loads((run / "run.json").read_text())


def copy_cut_after(checkpoint: int, run: Path, copy: Path) -> None:
    """A copy of a run as a kill leaves it: no later checkpoint, lines past the last one, one of them half written."""
    shutil.copytree(run, copy)
    for place in copy.glob("checkpoints/*"):
        if int(place.name) > checkpoint:
            shutil.rmtree(place)
    (copy / "run.json").write_text(json.dumps(status(copy) | {"status": "running", "end": None}))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "train/lear')


def stored_state(checkpoint: Path) -> dict[str, Any]:
    """What state.json says of a run, without the settings: where a server is or a cache lies may differ."""
    state = json.loads((checkpoint / "state.json").read_text())
    return {key: value for key, value in state.items() if key not in ("settings", "sha256")}


def same(one: Path, other: Path) -> None:
    """Assert that two runs differ in nothing but time."""
    assert timeless(one / "metrics.jsonl") == timeless(other / "metrics.jsonl")
    assert (one / "evaluations.jsonl").read_bytes() == (other / "evaluations.jsonl").read_bytes()
    last = sorted((one / "checkpoints").iterdir())[-1].name
    assert sorted((other / "checkpoints").iterdir())[-1].name == last
    for name in ("model.safetensors", "training.safetensors"):
        files = [(run / "checkpoints" / last / name).read_bytes() for run in (one, other)]
        assert files[0] == files[1], name
    assert stored_state(one / "checkpoints" / last) == stored_state(other / "checkpoints" / last)
