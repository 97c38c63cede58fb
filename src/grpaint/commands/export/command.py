"""``grpaint export``: write an adapter or pipeline and perhaps upload it, or count the layers of one that fit."""

from pathlib import Path
from typing import get_args

from typer import Exit

from grpaint.commands.export import formats
from grpaint.commands.export import push as hub
from grpaint.core.errors import ConfigError
from grpaint.recipe.deployment import in_training, remaining
from grpaint.recipe.pieces import Model
from grpaint.recipe.trust import DrawingRecipe
from grpaint.report.console import echo
from grpaint.run.folder import evaluations
from grpaint.run.saved import find_model

EXAMPLES = 3  # layers that are named
STEPS = 4  # sampling steps, at most, to compare latents before and after


def export(  # noqa: PLR0913 - reason: the command's arguments
    source: str,
    target: str,
    out: Path | None,
    adapter: Path | None,
    repository: str | None,
    without_frozen: list[str],
    sets: list[str],
    *,
    trust: bool,
) -> None:
    """Export the model of ``source`` for ``target`` into ``out``, and upload it if ``repository`` is given.

    Frozen adapters are in a merged pipeline alone: those that are on when it is used, but for ``without_frozen``.
    ``trust``: the settings of ``source`` may name code.
    With ``adapter`` nothing is written: the layers of that file which also exist in the model are counted.

    Raises:
        ConfigError, CheckpointError: an argument is refused, or the reloaded export draws other latents.
    """
    user = hub.check_login(repository) if repository else ""
    if target not in get_args(formats.Target):
        raise ConfigError(f"--for {target}: there are {', '.join(get_args(formats.Target))}.")
    if without_frozen and target != "merged":
        raise ConfigError(f"--without-frozen: --for {target} writes the trained adapter alone; leave it out.")
    saved = find_model(source, trust=trust)
    recipe = saved.recipe(DrawingRecipe, sets)
    names = recipe.deployed.frozen if recipe.deployed else in_training(recipe.model)
    names = remaining(names, without_frozen) if target == "merged" else ()
    policy = saved.open(recipe)
    if adapter:
        _print_layers(policy, adapter)
        return
    folder = out or Path("exports") / f"{Path(source).name.removesuffix('.safetensors')}-{target}"
    steps = min(STEPS, recipe.evaluate.steps)
    with policy.weights.with_frozen(names):
        deviation = formats.export(policy, saved.settings, steps, target, folder)  # type: ignore[arg-type]
        about = formats.description(policy, saved.settings) if repository else {}
    echo(f"{folder}  reloaded: latents differ by {deviation:.1e}")
    if repository:
        card = hub.card(repository, target, about, evaluations(saved.file), policy.family.lora_loader)  # type: ignore[attr-defined]
        (folder / hub.CARD).write_text(card, encoding="utf-8")
        echo(f"to {repository} as {user}, private if it is new; the files carry the recipe, with this machine's paths:")
        for path, size in hub.files_to_upload(folder):
            echo(f"{size:>14,}  {path}")
        echo(hub.push(folder, repository))


def _print_layers(policy: Model, adapter: Path) -> None:
    """Print how many layers of an adapter file match the model; exit with 1 unless all do."""
    match = formats.match(policy, adapter)
    echo(f"{len(match.matched)} layers match, {len(match.unmatched)} do not")
    if match.unmatched:
        more = len(match.unmatched) - EXAMPLES
        echo(f"not in this model: {', '.join(match.unmatched[:EXAMPLES])}{f' and {more} more' if more > 0 else ''}")
    raise Exit(1 if match.unmatched or not match.matched else 0)
