"""Draw pictures, draw one of ours again, or print a script that draws it with diffusers alone."""

import dataclasses
import re
from pathlib import Path

from typer import echo

from grpaint.commands.sample import provenance
from grpaint.core.errors import ConfigError
from grpaint.core.policy import Prompt
from grpaint.judge import sample
from grpaint.report.figures import new_file, save_picture, to_picture
from grpaint.run.saved import find_model, open_model
from grpaint.storage.files import digest

LEAST_SIDE = 256  # pixels: smaller pictures are enlarged


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What ``grpaint sample`` was asked for: captions, the seed of the first, where pictures go, and settings."""

    prompts: list[str]
    seed: int
    out: Path
    steps: int | None
    guidance: float | None
    like: Path | None
    snippet: bool
    sets: list[str]

    def settings(self) -> list[str]:
        """Return the ``--set`` arguments that its flags stand for."""
        flags = [f"evaluate.steps={self.steps}"] if self.steps else []
        return [*self.sets, *flags, *([] if self.guidance is None else [f"evaluate.guidance={self.guidance}"])]


def draw(source: str | None, drawing: Drawing) -> None:
    """Draw each caption with the model of a run, checkpoint or file, and print where the pictures are.

    Raises:
        ConfigError, CheckpointError: nothing to draw or nothing to draw it with, or ``like`` does not fit the model.
    """
    sets, prompts, seed = drawing.settings(), drawing.prompts, drawing.seed
    if drawing.like:
        record = provenance.read(drawing.like)
        source, prompts, seed = source or record["source"], prompts or [record["prompt"]], record["seed"]
        sets = provenance.sets(record) + sets
    if not source or not prompts:
        raise ConfigError("sample: name a run, checkpoint or file, and a caption in quotes; or --like PICTURE.")
    policy, recipe = open_model(source, [*sets, f"evaluate.seed={seed}"])
    file = find_model(source)[0]
    if drawing.like:
        provenance.check(drawing.like, record, file, recipe)
    if drawing.guidance is not None and getattr(policy, "distilled", False):
        raise ConfigError("--guidance: this model's guidance is distilled into it; give --set model.guidance=..")
    weights = digest(file)
    for number, prompt in enumerate(prompts):
        if drawing.snippet:
            echo(provenance.snippet(policy, recipe, prompt, seed + number, file))
            continue
        image = sample(policy, [Prompt(prompt)], dataclasses.replace(recipe.evaluate, seed=seed + number))[0]
        picture = new_file(drawing.out / _file_name(number, prompt, recipe.evaluate.tuned_share))
        facts = provenance.facts(source, weights, recipe, prompt, seed + number)
        save_picture(to_picture(image, max(LEAST_SIDE, image.shape[-1])), picture, provenance.info(facts))
        echo(str(picture))


def _file_name(number: int, prompt: str, tuned_share: float) -> str:
    words = "-".join(re.findall(r"\w+", prompt))
    mixed = f"-tuned-{tuned_share:g}" if tuned_share < 1 else ""  # hybrid inference is named wherever its result goes
    return f"{number:02d}-{words[:60]}{mixed}.png"
