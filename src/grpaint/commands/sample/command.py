"""Draw pictures, repeat the drawing of an earlier one, or print a script that draws it with diffusers alone."""

import dataclasses
import re
from pathlib import Path

from grpaint.backends.frozen import frozen_facts
from grpaint.commands.sample import provenance
from grpaint.core.errors import ConfigError
from grpaint.core.policy import Prompt
from grpaint.judge import sample
from grpaint.recipe.deployment import DeployedEvaluation, in_training, remaining, with_frozen
from grpaint.recipe.trust import DrawingRecipe
from grpaint.report.console import echo, echo_lines
from grpaint.report.figures import new_file, save_picture, to_picture
from grpaint.run.saved import find_model
from grpaint.storage.files import digest

LEAST_SIDE = 256  # pixels: smaller pictures are enlarged


@dataclasses.dataclass(frozen=True)
class DrawRequest:
    """The arguments of ``grpaint sample``: captions, the seed of the first one, the output folder, and settings.

    ``like``: a picture of ``grpaint sample`` to draw again; ``snippet``: print a diffusers script instead.
    ``without_frozen``: frozen adapters to leave out; ``deploy``: draw by ``[deploy]`` if the run has it. ``trust``: the
    settings of the model and of ``like`` may name code.
    """

    prompts: list[str]
    seed: int
    out: Path
    steps: int | None
    guidance: float | None
    like: Path | None
    snippet: bool
    without_frozen: list[str]
    deploy: bool
    sets: list[str]
    trust: bool

    def settings(self, table: str) -> list[str]:
        """The ``--set`` items, with those that its other flags are short for; ``table``: deploy or evaluate."""
        flags = {"steps": self.steps, "guidance": self.guidance}
        short = [f"{table}.{key}={value}" for key, value in flags.items() if value is not None]
        return [*self.sets, *short, f"evaluate.seed={self.seed}"]


def draw_captions(source: str | None, request: DrawRequest) -> None:
    """Draw each caption with the model of a run, checkpoint or file, and print the pictures' paths.

    Raises:
        ConfigError, CheckpointError: a caption or model is missing, or ``like`` was drawn with another model.
    """
    record = None
    if request.like:
        record = provenance.read_provenance(request.like, request.sets, trust=request.trust)
        source, prompts = source or record.source, request.prompts or [record.prompt]
        request = dataclasses.replace(request, prompts=prompts, seed=record.seed)
    prompts, seed = request.prompts, request.seed
    if not source or not prompts:
        raise ConfigError("sample: name a run, checkpoint or file, and a caption in quotes; or --like PICTURE.")
    saved = find_model(source, trust=request.trust)
    if record:
        saved = saved.with_evaluation(record.evaluate)
    if record or not request.deploy:
        saved = saved.without_deployment()
    in_sets = any(re.match(r"deploy[.=]", item) for item in request.sets)
    if in_sets and (record or not request.deploy):
        raise ConfigError("--set deploy..: --like and --no-deploy do not draw by [deploy]; leave one of them out.")
    deployed = in_sets or "deploy" in saved.settings
    recipe = saved.recipe(DrawingRecipe, request.settings("deploy" if deployed else "evaluate"))
    if request.like and record:
        provenance.check_provenance(request.like, record, saved.file, recipe)
    settings = _drawing_settings(recipe, record, request.without_frozen)
    policy, file = saved.open(recipe), saved.file
    if request.guidance is not None and getattr(policy, "distilled", False):
        raise ConfigError("--guidance: this model's guidance is distilled into it; give --set model.guidance=..")
    hashes = {
        "weights_sha256": digest(file),
        "frozen": frozen_facts(getattr(recipe.model, "frozen", ()), settings.frozen),
    }
    for number, prompt in enumerate(prompts):
        if request.snippet:
            echo_lines(provenance.diffusers_script(policy, settings, prompt, seed + number, file).split("\n"))
            continue
        image = sample(policy, [Prompt(prompt)], dataclasses.replace(settings, seed=seed + number))[0]
        picture = new_file(request.out / _file_name(number, prompt, settings.tuned_share))
        facts = provenance.drawing_facts(source, hashes, recipe.model, settings, prompt, seed + number)
        save_picture(to_picture(image, max(LEAST_SIDE, image.shape[-1])), picture, provenance.png_metadata(facts))
        echo(str(picture))


def _drawing_settings(
    recipe: DrawingRecipe, record: provenance.Provenance | None, left_out: list[str]
) -> DeployedEvaluation:
    """The settings to draw with: those of a picture that is drawn again, of ``[deploy]``, or of ``[evaluate]``.

    Raises:
        ConfigError: a name in ``left_out`` is of no frozen adapter that would be on.
    """
    if record:
        settings = with_frozen(recipe.evaluate, tuple(adapter.name for adapter in record.frozen), record.order)
    else:
        settings = recipe.deployed or with_frozen(recipe.evaluate, in_training(recipe.model))
    return with_frozen(settings, remaining(settings.frozen, left_out))


def _file_name(number: int, prompt: str, tuned_share: float) -> str:
    words = "-".join(re.findall(r"\w+", prompt))
    mixed = f"-tuned-{tuned_share:g}" if tuned_share < 1 else ""  # hybrid inference is named wherever its pictures go
    return f"{number:02d}-{words[:60]}{mixed}.png"
