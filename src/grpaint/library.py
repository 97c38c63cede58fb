"""The verbs of ``import grpaint``: what the commands do, as functions that take and return Python values.

Settings are the keys of a recipe. A value may also be a piece such as ``FlowSde(eta=0.7)``, or a function or class of
yours at the top of a module; run.toml keeps its name, by which a later process finds it again.
"""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpaint.commands.estimate.command import advice
from grpaint.commands.evaluate.candidates import parse_candidates
from grpaint.commands.evaluate.command import assess, judge_model
from grpaint.commands.export.command import export as export_model
from grpaint.commands.train.command import run
from grpaint.core.errors import ConfigError, StopRequested
from grpaint.core.policy import Prompt, Weights
from grpaint.judge import sample as sample_images
from grpaint.recipe.arguments import set_arguments
from grpaint.recipe.config import DEFAULT, Recipe, stage_of
from grpaint.recipe.config import open_recipe as open_stage
from grpaint.recipe.pieces import Model
from grpaint.recipe.settings import Evaluation
from grpaint.recipe.trust import DrawingRecipe
from grpaint.run.folder import RunFolder
from grpaint.run.opening import load_model
from grpaint.run.page import PAGE
from grpaint.run.saved import find_model
from grpaint.run.signals import Stopped

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The folder of a run, to read what it has written; each property reads it anew.

    ``path``: the folder, such as ``runs/demo``.
    """

    path: Path

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, with defaults: the tables of run.toml."""
        return RunFolder(self.path).settings()

    @property
    def status(self) -> str:
        """One of "starting", "running", "finished", "interrupted" and "failed"."""
        return str(RunFolder(self.path).facts().get("status", "starting"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary an iteration, by the names in docs/metrics.md."""
        return RunFolder(self.path).lines("metrics.jsonl")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One dictionary an evaluation on held-out prompts; the first is of the base, at iteration 0."""
        return RunFolder(self.path).lines("evaluations.jsonl")

    @property
    def page(self) -> Path:
        """The page that shows the run in a browser."""
        return self.path / PAGE


Source = str | Path | Run


def open_recipe(name: str | Path | None = None, settings: Settings | None = None) -> Recipe:
    """Build a recipe and return it as one frozen object, such as ``open_recipe("mix-grpo").plan.window``.

    ``name``: a path, WORLD/METHOD or a METHOD; the default recipe of ``grpaint train`` if None. ``settings``: as for
    :func:`train`. No weights are opened.

    Raises:
        ConfigError: there is no such recipe, or settings are wrong or do not go together.
    """
    name = DEFAULT["train"] if name is None else str(name)
    return open_stage(name, stage_of(name), set_arguments(settings or {}))[0]


def train(
    recipe: str | Path | None = None,
    settings: Settings | None = None,
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
) -> Run:
    """Post-train with reinforcement learning to the end, as ``grpaint train`` does, and return the run.

    ``recipe``: a path, WORLD/METHOD or a METHOD; the default recipe if None. ``settings``: values by key, such as
    ``{"train.iterations": 20, "rewards.red.kind": red_left}``; a table as one value replaces the recipe's. ``name``: of
    the folder in ``runs``, by default the recipe's. ``resume``: go on from its last checkpoint.

    Raises:
        ConfigError: a setting is refused, the name is taken, or there is nothing to resume.
        RunError: the run cannot continue; its last checkpoint stays.
        KeyboardInterrupt: Ctrl-C, after the iteration was finished and saved, or at once where it waits for people.
        SystemExit: SIGTERM or SIGHUP, likewise.
    """
    return _run("train", recipe, settings, name, Path(runs), resume=resume)


def sft(
    recipe: str | Path | None = None,
    settings: Settings | None = None,
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
) -> Run:
    """Train on captioned images to the end, as ``grpaint sft`` does; arguments and errors as of :func:`train`."""
    return _run("sft", recipe, settings, name, Path(runs), resume=resume)


def load(source: Source | Recipe, settings: Settings | None = None, *, trust: bool = False) -> Model:
    """Open a model: of a run, checkpoint, export or weight file, or the one that a recipe begins with.

    ``settings`` change how a saved model is opened, such as ``{"device": "cpu"}``; a recipe has its own.
    ``trust``: what was saved may name code of whoever saved it, which is imported.

    Raises:
        ConfigError, CheckpointError: there is none, or it cannot be read.
    """
    if isinstance(source, Run | str | Path):
        saved = find_model(_source_text(source), trust=trust)
        return saved.open(saved.recipe(DrawingRecipe, set_arguments(settings or {})))
    if settings:
        raise ConfigError("load: a recipe has its settings already; give them to open_recipe.")
    return load_model(source)


def sample(
    model: Source | Model,
    captions: Sequence[str | Prompt],
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    weights: Weights = "average",
    trust: bool = False,
) -> Tensor:
    """Draw one image for each caption: ``[b, 3, h, w]`` in [0, 1], fp32 on the CPU.

    The first image is that of ``seed``, the next of ``seed + 1``, as ``grpaint sample`` draws them. ``steps`` and
    ``guidance`` default to those of the run's ``[deploy]`` or ``[evaluate]``; an open model has no settings, and takes
    20 steps of the ODE without guidance. ``weights``: "average", "current" or "reference", which is the base.
    ``trust``: the settings of a saved model may name code, such as a sampler of yours.

    Raises:
        ConfigError, CheckpointError: there is no such model, or a value is refused.
    """
    prompts = [Prompt(caption) if isinstance(caption, str) else caption for caption in captions]
    if not prompts:
        raise ConfigError("sample: no captions; give one at least.")
    if isinstance(model, Run | str | Path):
        saved = find_model(_source_text(model), trust=trust)
        recipe = saved.recipe(DrawingRecipe)
        policy, evaluation = saved.open(recipe), recipe.drawing
    else:
        policy, evaluation = model, Evaluation()
    if guidance is not None and getattr(policy, "distilled", False):
        raise ConfigError("sample: this model's guidance is distilled into it; load it with model.guidance set.")
    try:
        evaluation = replace(
            evaluation,
            steps=evaluation.steps if steps is None else steps,
            guidance=evaluation.guidance if guidance is None else guidance,
        )
    except ValueError as error:
        raise ConfigError(f"sample: {error}.") from error
    images = [
        sample_images(policy, [prompt], replace(evaluation, seed=seed + number), weights=weights)
        for number, prompt in enumerate(prompts)
    ]
    return torch.cat(images)


def evaluate(
    models: Source | Mapping[str, Source],
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    few: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Judge one model on held-out prompts, or several by name on the same prompts and noise.

    One gives a line as in ``evaluations.jsonl``; several, or one with ``out``, give ``evaluation.json``, with records
    and a page in the folder ``out`` ("evaluation" if None). The first of several is what the others are compared with;
    ``"RUN:base"`` names what a run began from. ``settings``: keys of ``evaluate`` and ``measure``. ``few``: a
    FID on fewer images than features is computed all the same. ``trust``: the models' settings may name code, such as a
    reward of yours; without it that reward is left out, and a line says so.

    Raises:
        ConfigError, CheckpointError: a model cannot be evaluated.
    """
    sets = set_arguments(settings or {})
    if isinstance(models, Mapping):
        for name in models:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ConfigError(f'evaluate: "{name}": a name has letters, digits, and _ . - alone.')
        words = [f"{name}={_source_text(source)}" for name, source in models.items()]
    else:
        words = [_source_text(models)]
        if out is None and not words[0].endswith(":base"):
            return judge_model(find_model(words[0], trust=trust), sets)
    return assess(
        parse_candidates(words, trust=trust), sets, Path(out or "evaluation"), few=few, keep=False, log=lambda _: None
    )


def export(source: Source, target: str, out: str | Path, *, trust: bool = False) -> Path:
    """Write the model of ``source`` for ``target``, "diffusers", "comfyui" or "merged", into ``out`` and return that.

    The export is opened again and compared before it counts, as by ``grpaint export``. ``trust``: as for :func:`load`.

    Raises:
        ConfigError, CheckpointError: an argument is refused, or the reloaded export draws other latents.
    """
    export_model(_source_text(source), target, Path(out), None, None, [], [], trust=trust)
    return Path(out)


def _source_text(source: Source) -> str:
    """Return the argument by which a command names a source."""
    return str(source.path if isinstance(source, Run) else source)


def _run(
    stage: str, recipe: str | Path | None, settings: Settings | None, name: str | None, runs: Path, *, resume: bool
) -> Run:
    named = None if recipe is None else str(recipe)
    try:
        return Run(run(stage, named, set_arguments(settings or {}), runs, name, resume=resume, advice=advice))
    except (Stopped, StopRequested) as stop:
        if stop.exit_code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from stop
        raise SystemExit(stop.exit_code) from stop
