"""Draw pictures, repeat the drawing of an earlier one, or print a script that draws it with diffusers alone."""

import dataclasses
import re
from pathlib import Path

from grpaint.commands.sample import provenance
from grpaint.core.errors import ConfigError
from grpaint.core.policy import Prompt
from grpaint.judge import sample
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
    ``trust``: the settings of the model and of ``like`` may name code.
    """

    prompts: list[str]
    seed: int
    out: Path
    steps: int | None
    guidance: float | None
    like: Path | None
    snippet: bool
    sets: list[str]
    trust: bool

    def settings(self) -> list[str]:
        """The ``--set`` items, with those that its other flags are short for."""
        flags = [f"evaluate.steps={self.steps}"] if self.steps else []
        return [*self.sets, *flags, *([] if self.guidance is None else [f"evaluate.guidance={self.guidance}"])]


def draw_captions(source: str | None, request: DrawRequest) -> None:
    """Draw each caption with the model of a run, checkpoint or file, and print the pictures' paths.

    Raises:
        ConfigError, CheckpointError: a caption or model is missing, or ``like`` was drawn with another model.
    """
    sets, prompts, seed, record = request.settings(), request.prompts, request.seed, None
    if request.like:
        record = provenance.read_provenance(request.like, sets, trust=request.trust)
        source, prompts, seed = source or record.source, prompts or [record.prompt], record.seed
    if not source or not prompts:
        raise ConfigError("sample: name a run, checkpoint or file, and a caption in quotes; or --like PICTURE.")
    saved = find_model(source, trust=request.trust)
    if record:
        saved = saved.with_evaluation(record.evaluate)
    recipe = saved.recipe(DrawingRecipe, [*sets, f"evaluate.seed={seed}"])
    policy, file = saved.open(recipe), saved.file
    if request.like and record:
        provenance.check_provenance(request.like, record, file, recipe)
    if request.guidance is not None and getattr(policy, "distilled", False):
        raise ConfigError("--guidance: this model's guidance is distilled into it; give --set model.guidance=..")
    weights = digest(file)
    for number, prompt in enumerate(prompts):
        if request.snippet:
            echo_lines(provenance.diffusers_script(policy, recipe, prompt, seed + number, file).split("\n"))
            continue
        image = sample(policy, [Prompt(prompt)], dataclasses.replace(recipe.evaluate, seed=seed + number))[0]
        picture = new_file(request.out / _file_name(number, prompt, recipe.evaluate.tuned_share))
        facts = provenance.drawing_facts(source, weights, recipe, prompt, seed + number)
        save_picture(to_picture(image, max(LEAST_SIDE, image.shape[-1])), picture, provenance.png_metadata(facts))
        echo(str(picture))


def _file_name(number: int, prompt: str, tuned_share: float) -> str:
    words = "-".join(re.findall(r"\w+", prompt))
    mixed = f"-tuned-{tuned_share:g}" if tuned_share < 1 else ""  # hybrid inference is named wherever its pictures go
    return f"{number:02d}-{words[:60]}{mixed}.png"
