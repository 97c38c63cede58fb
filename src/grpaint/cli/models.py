"""Commands about models and what they draw."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli.app import app
from grpaint.cli.options import AsJson, RecipeName, Sets, Source

WORDS = {True: "PASS", False: "FAIL", None: "  - "}


@app.command()
def sample(  # noqa: PLR0913 - reason: one argument a flag
    source: Annotated[str | None, typer.Argument(metavar="RUN-OR-CHECKPOINT", help="Or an exported file.")] = None,
    prompts: Annotated[list[str] | None, typer.Argument(help="Captions, each in quotes.")] = None,
    seed: Annotated[int, typer.Option(help="Of the start noise of the first picture; the next has the next.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("samples"),
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Of the sampler; the run's own if unset.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="1 is none; the run's own if unset.")] = None,
    like: Annotated[Path | None, typer.Option(help="Draw this picture of ours again.")] = None,
    snippet: Annotated[bool, typer.Option("--snippet", help="Print a script for diffusers instead.")] = False,
    sets: Sets = None,
) -> None:
    """Draw captions with a trained model. Each picture says how it was drawn."""
    from grpaint.commands.sample import provenance
    from grpaint.core.errors import ConfigError
    from grpaint.core.policy import Prompt
    from grpaint.judge import sample as draw
    from grpaint.report.terminal import new_file, save_picture, to_picture
    from grpaint.run.saved import find_model, open_model
    from grpaint.storage.files import digest

    given = [*(sets or []), *([f"evaluate.steps={steps}"] if steps else [])]
    given += [] if guidance is None else [f"evaluate.guidance={guidance}"]
    texts = list(prompts or [])
    if like:
        said = provenance.read(like)
        source, texts, seed = source or said["source"], texts or [said["prompt"]], said["seed"]
        given = provenance.sets(said) + given
    if not source or not texts:
        raise ConfigError("sample: name a run, checkpoint or file, and a caption in quotes; or --like PICTURE.")
    policy, recipe = open_model(source, [*given, f"evaluate.seed={seed}"])
    file = find_model(source)[0]
    if like:
        provenance.check(like, said, file, recipe)
    if guidance is not None and getattr(policy, "distilled", False):
        raise ConfigError("--guidance: this model's guidance is distilled into it; give --set model.guidance=..")
    weights = digest(file)
    share = recipe.evaluate.tuned_share
    mixed = f"-tuned-{share:g}" if share < 1 else ""  # hybrid inference is named wherever its result goes
    for number, text in enumerate(texts):
        if snippet:
            typer.echo(provenance.snippet(policy, recipe, text, seed + number, file))
            continue
        image = draw(policy, [Prompt(text)], dataclasses.replace(recipe.evaluate, seed=seed + number))[0]
        words = "-".join(re.findall(r"\w+", text))
        place = new_file(out / f"{number:02d}-{words[:60]}{mixed}.png")
        said = provenance.facts(source, weights, recipe, text, seed + number)
        save_picture(to_picture(image, max(256, image.shape[-1])), place, provenance.info(said))
        typer.echo(str(place))


@app.command()
def export(
    source: Source,
    target: Annotated[str, typer.Option("--for", help="diffusers, comfyui (A1111 too) or merged.")] = "diffusers",
    out: Annotated[Path | None, typer.Option(help="The new folder; exports/NAME-TARGET if unset.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="Only say which layers of this adapter file the model has.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Then upload it to this repository of the hub.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Write a trained adapter or pipeline for other programs; it is loaded again and compared first."""
    from typing import get_args

    from grpaint.commands.export import command as exporting
    from grpaint.commands.export import push as pushing
    from grpaint.core.errors import ConfigError
    from grpaint.run.folder import evaluations
    from grpaint.run.saved import find_model, open_model

    user = pushing.check(push) if push else ""
    if target not in get_args(exporting.Target):
        raise ConfigError(f"--for {target}: there are {', '.join(get_args(exporting.Target))}.")
    policy, recipe = open_model(source, sets or [])
    if check:
        match = exporting.match(policy, check)
        typer.echo(f"{len(match.matched)} layers match, {len(match.unmatched)} do not")
        for layer in match.unmatched:
            typer.echo(f"  not in this model: {layer}")
        raise typer.Exit(1 if match.unmatched or not match.matched else 0)
    name = Path(source).name.removesuffix(".safetensors")
    place = out or Path("exports") / f"{name}-{target}"
    file, table = find_model(source)
    off = exporting.export(policy, table, min(4, recipe.evaluate.steps), target, place)  # type: ignore[arg-type]
    typer.echo(f"{place}  reloaded: latents differ by {off:.1e}")
    if push:
        about = exporting.description(policy, table)
        (place / pushing.CARD).write_text(pushing.card(push, target, about, evaluations(file)), encoding="utf-8")
        typer.echo(f"to {push} as {user}, private if it is new; the files carry the recipe, with this machine's paths:")
        for path, size in pushing.listing(place):
            typer.echo(f"{size:>14,}  {path}")
        typer.echo(pushing.push(place, push))


@app.command()
def doctor(recipe: RecipeName = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Check a recipe on this machine and model before it runs: PASS or FAIL, the likely cause and the mend."""
    from grpaint.commands.doctor import examine
    from grpaint.core.runtime import resolve
    from grpaint.recipe.config import TrainRecipe, open_recipe
    from grpaint.recipe.pieces import described

    loaded, _ = open_recipe(recipe, "train", sets or [])
    assert isinstance(loaded, TrainRecipe)
    if not as_json and (about := described(loaded.model)):
        typer.echo(f"model  {about}")
    failed = 0
    for finding in examine(loaded, resolve(loaded.device, loaded.precision)):
        failed += finding.passed is False
        if as_json:
            typer.echo(json.dumps(vars(finding)))
            continue
        typer.echo(f"{WORDS[finding.passed]}  {finding.check}: {finding.found}")
        if finding.passed is False:
            typer.echo(f"      likely: {finding.mend}")
    if failed:
        raise typer.Exit(1)


@app.command()
def fetch(
    recipe: Annotated[str, typer.Argument(help="A path, WORLD/METHOD, or METHOD.")],
    to: Annotated[Path, typer.Option(help="Where the files go.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    sets: Sets = None,
) -> None:
    """Download every file that a recipe needs, with sizes and hashes; nothing else needs a network."""
    from grpaint.backends import pipeline_files as pipelines
    from grpaint.backends import single_file
    from grpaint.recipe.config import locate, override, read_toml, weights_of
    from grpaint.storage import hub

    table = override(read_toml(locate(recipe)), sets or [])
    model = table.get("model", {})
    one = single_file.is_single_file(str(model.get("base", "")))
    setting = "config" if one else "base"
    wanted: list[tuple[str, str, list[hub.Remote]]] = []
    if model.get("kind") == "diffusers" and hub.is_hub_id(str(model.get(setting, ""))):
        held = tuple(single_file.read_single_file(model["base"]).parts) if one else ()
        wanted.append((f"model.{setting}", *pipelines.pipeline_listing(model[setting], f"model.{setting}", held)))
    for key, source in weights_of(table):
        if hub.is_hub_id(source.given):
            name, files = hub.listing(source.given)
            files = [file for file in files if hub.matches(file.name, source.files)]
            wanted.append((f"{key}.{source.setting}", name, files))
        elif not Path(source.given).expanduser().exists():
            typer.echo(f"{key}.{source.setting}: {source.files[0]} comes from {source.origin}")
    for _, name, files in wanted:
        for file in files:
            typer.echo(f"{file.size:>14,}  {file.sha256 or '-':64}  {file.name}")
        typer.echo(f"{sum(file.size for file in files):>14,}  bytes in {len(files)} files of {name}")
    if not wanted:
        typer.echo("nothing to fetch: no part of the recipe names a hub's repository")
    for key, name, files in [] if dry_run else wanted:
        typer.echo(f'--set {key}="{hub.fetch(key, name, files, to)}"')
