"""The recipes for real models: each resolves on a tiny pipeline of its family, and says what it is and is not."""

import contextlib
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from grpaint.commands.listing import listing
from grpaint.learn.forward import AdvantageWeightedMatching
from grpaint.learn.objective import PolicyGradient
from grpaint.recipe.config import TrainRecipe, locate, open_recipe, recipe_names, stage_of
from grpaint.rollout import Sliding, Whole
from tiny_pipelines import save, side
from tiny_runs import EMBEDDED, command

PIPELINES = {
    "sana-1.5": "sana",
    "kolors": "kolors",
    "hidream-i1-full": "hidream",
    "krea2": "krea2",
    "hunyuan-image-2.1": "hunyuan-image",
    "lumina2": "lumina2",
    "chroma": "chroma",
    "flux-dev": "flux-dev",
    "flux2-dev": "flux2-dev",
    "flux2-klein-base": "flux2-klein-base",
    "qwen-image": "qwen-image",
    "qwen-image-2.1": "qwen-image-2.1",
    "sd15": "sd15",
    "sd3.5-medium": "sd3",
    "sdxl": "sdxl",
    "ssd-1b": "ssd-1b",
    "z-image": "z-image",
}
FEW_STEPS = {  # models of few steps, and the methods that have a recipe of their own
    "sdxl-turbo": ("sdxl-turbo", ("awm", "flow-grpo", "tafs-grpo")),
    "sdxl-lightning": ("sdxl", ("flow-grpo",)),
    "lcm-dreamshaper-v7": ("sd15-lcm", ("awm", "flow-grpo")),
    "flux-schnell": ("flux-schnell", ("awm", "flow-grpo", "tafs-grpo")),
    "z-image-turbo": ("z-image", ("flow-grpo",)),
    "flux2-klein": ("flux2-klein", ("flow-grpo",)),
}
FOLDERS = PIPELINES | {model: pipeline for model, (pipeline, _) in FEW_STEPS.items()}
RECIPES = sorted({*recipe_names()} - {*EMBEDDED})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny pipelines, prompts, and a folder of captioned images."""
    root = tmp_path_factory.mktemp("families")
    for name in {*FOLDERS.values()}:
        save(name, root)
    (root / "prompts.txt").write_text("".join(f"a cat, number {n}\n" for n in range(40)))
    (root / "images").mkdir()
    for number in range(40):
        Image.new("RGB", (24, 16 + 4 * (number % 3)), (number, 0, 0)).save(root / f"images/{number}.png")
        (root / f"images/{number}.txt").write_text(f"a cat, number {number}")
    return root


def on_tiny(recipe: str, root: Path) -> tuple[str, ...]:
    """Settings with which a recipe takes a tiny pipeline; that of a single file takes a folder."""
    pipeline = FOLDERS[recipe.partition("/")[0]]
    pixels = side(pipeline)
    base = f"model.base={json.dumps(str(root / pipeline))}"
    return base, 'model.config=""', f"model.height={pixels}", f"model.width={pixels}"


def test_every_family_has_its_methods_and_ssd_1b_its_first_stage() -> None:
    pairs = {f"{family}/{method}" for family in PIPELINES for method in ("awm", "flow-grpo", "mix-grpo")}
    few = {f"{model}/{method}" for model, (_, methods) in FEW_STEPS.items() for method in methods}
    assert set(RECIPES) == pairs | few | {"ssd-1b/sft"}


def test_a_bare_name_is_still_a_recipe_of_the_embedded_world() -> None:
    for method in listing("methods"):
        assert locate(method).parent.name.startswith("scenes")
    assert locate("sft").parent.name == "scenes"
    assert {*RECIPES} <= listing("recipes").keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_source_what_differs_and_that_nobody_has_measured_it(name: str) -> None:
    text = locate(name).read_text(encoding="utf-8")
    header = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    assert header[0].endswith(".")
    for word in ("Source: ", f"Command: grpaint {stage_of(name)} {name} "):
        assert any(line.startswith(word) for line in header), word
    assert "Not yet measured on real weights." in header
    assert max(map(len, text.splitlines())) <= 120


FEW = ("train.prompts=2", "train.updates=1", "evaluate.prompts=2")
# A plan looks at network and method: one method for each family, all methods for one U-Net and one flow.
ALL_PLANNED = ("sdxl/", "sd3.5-medium/")
PLANNED_AS_OTHERS = ("sdxl-", "flux-schnell/", "z-image-", "flux2-klein/")
PLANNED = [
    pytest.param(
        name,
        marks=[]
        if name.startswith(ALL_PLANNED) or (name.endswith("/flow-grpo") and not name.startswith(PLANNED_AS_OTHERS))
        else pytest.mark.slow,
    )
    for name in RECIPES
]


@pytest.mark.parametrize("name", PLANNED)
def test_a_recipe_is_shown_and_planned_without_its_data(name: str, root: Path, tmp_path: Path) -> None:
    sets = [*on_tiny(name, root)]
    sets += ["data.resolution=16", "data.bucket_step=4", "train.batch=2"] if name.endswith("sft") else FEW
    sets += ["data.resolution=16"] if "resolution" in locate(name).read_text() else []
    with contextlib.chdir(tmp_path):
        shown, planned = command("show", name, "--processes", "2", sets=sets), command("plan", name, sets=sets)
        refused = command(stage_of(name), name, sets=sets)
    assert (shown.code, planned.code) == (0, 0), shown.err + planned.err
    trained = re.search(r"([\d,]+) of them trained", planned.out)
    assert trained
    assert f"{4 * int(trained[1].replace(',', '')):,}" in shown.out
    assert re.search(r'not counted: data.train = "(prompts.txt|images)": no such file', planned.out)
    assert refused.code == 2
    assert re.search(r'^grpaint: (rewards|data.train = "(prompts.txt|images)": no such file)', refused.err)
    assert not list((tmp_path / "runs").glob("[!.]*"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves_on_a_tiny_pipeline_of_its_family(name: str, root: Path) -> None:
    method = name.partition("/")[2]
    kind = "images" if 'kind = "images"' in locate(name).read_text() else "prompts"
    sets = [
        *on_tiny(name, root),
        "data.held_out_share=0.3",
        f"data.train={json.dumps(str(root / ('images' if kind == 'images' else 'prompts.txt')))}",
        *(["data.resolution=16", "data.bucket_step=4"] if kind == "images" else []),
    ]
    recipe, _ = open_recipe(name, stage_of(name), sets)
    assert recipe.model.path
    assert recipe.data.held_out(2, 0)
    if not isinstance(recipe, TrainRecipe):
        return
    assert isinstance(recipe.objective, AdvantageWeightedMatching if method == "awm" else PolicyGradient)
    window = recipe.plan.window
    assert isinstance(window, Sliding) == (method == "mix-grpo")
    if isinstance(window, Whole):
        assert recipe.plan.window.steps(recipe.plan.steps, 0, 0) == range(recipe.plan.steps - 1)
    assert recipe.evaluate.guidance == getattr(recipe.model, "guidance", 1.0) or recipe.model.guided_by == "distilled"  # type: ignore[attr-defined]


FIRST = ("flux-dev", "qwen-image", "sd15", "sd3.5-medium", "sdxl", "ssd-1b", "z-image", "flux2-klein-base")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow) for name in PIPELINES]
)
def test_awm_takes_a_step_on_a_tiny_pipeline_of_its_family(family: str, root: Path, tmp_path: Path) -> None:
    sets = [
        *on_tiny(family, root),
        "model.embeddings=encode",
        f"data.train={json.dumps(str(root / 'prompts.txt'))}",
        'rewards={jpeg={kind="jpeg"}}',
        "plan.steps=2",
        "train.iterations=1",
        "train.prompts=2",
        "train.group_size=4",
        "evaluate.every=1",
        "evaluate.prompts=2",
        "evaluate.steps=1",
        "evaluate.guided=[]",
        "device=cpu",
        "precision=fp32",
        "threads=1",
    ]
    with contextlib.chdir(tmp_path):
        trained = command("train", f"{family}/awm", "--name", "step", sets=sets)
    assert trained.code == 0, trained.err
    (line,) = map(json.loads, (tmp_path / "runs/step/metrics.jsonl").read_text().splitlines())
    assert line["policy/grad_norm"] > 0
