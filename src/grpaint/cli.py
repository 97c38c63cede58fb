"""The command line. Nothing heavy is imported until a command needs it."""

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from grpaint.run.folder import RunFolder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Post-train text-to-image models with online reinforcement learning.",
)


@app.callback()
def _everywhere(
    offline: Annotated[bool, typer.Option("--offline", help="Ask no hub; what is not here is an error.")] = False,
) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


RecipeName = Annotated[str | None, typer.Argument(help="A path, WORLD/METHOD, or METHOD; the default when left out.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key.sub=value; may be repeated.", show_default=False)]
RunName = Annotated[str | None, typer.Option("--name", help="The folder's name under runs/.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run of this name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Source = Annotated[str, typer.Argument(metavar="RUN-OR-CHECKPOINT", help="A run, a checkpoint folder, or a file.")]
WORDS = {True: "PASS", False: "FAIL", None: "  - "}


@app.command()
def train(recipe: RecipeName = None, sets: Sets = None, name: RunName = None, resume: Resume = False) -> None:
    """Post-train with reinforcement learning; without RECIPE the built-in model with the default method."""
    _run("train", recipe, sets or [], name, resume=resume)


@app.command()
def sft(recipe: RecipeName = None, sets: Sets = None, name: RunName = None, resume: Resume = False) -> None:
    """Train on captioned images (the supervised stage)."""
    _run("sft", recipe, sets or [], name, resume=resume)


def _run(stage: str, recipe: str | None, sets: list[str], name: str | None, *, resume: bool) -> None:
    from rich.console import Console

    from grpaint.core.errors import CheckpointError, ConfigError
    from grpaint.run.config import DEFAULT, locate, open_recipe, override, read_toml, resolve
    from grpaint.run.folder import RunFolder
    from grpaint.run.progress import Progress
    from grpaint.train import check_resume, start

    console = Console()
    name = name or _short(recipe or DEFAULT[stage])
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name {name}: the name of a folder under runs/, without / and not beginning with a dot.")
    path = Path("runs") / name
    if resume:
        folder = RunFolder.open(path)
        kept, before = folder.settings(), folder.facts().get("sets", [])
        given = [item for item in before if item not in sets] + sets
        again = override(kept, sets) if recipe is None else override(read_toml(locate(recipe)), given)
        loaded, settings = resolve(again, stage)
        kept = resolve(kept, stage)[1]  # with the defaults of settings that have come since
        check_resume(folder, kept, settings)
        if settings == kept and folder.facts().get("status") == "finished":
            console.print(f"{path} has finished its {loaded.train.iterations} iterations; nothing to do.")
            return
        folder.keep_settings(settings)
        folder.status(sets=given)
    else:
        loaded, settings = open_recipe(recipe, stage, sets)
        folder = RunFolder.create(path, settings, sets)
    try:
        with Progress(console, loaded.train.iterations) as progress:
            start(loaded, folder, progress.log, [progress.watch])
    except (ConfigError, CheckpointError):
        if not resume and not folder.lines("evaluations.jsonl"):
            folder.discard()
        raise
    _show_end(console, folder)


def _short(recipe: str) -> str:
    return Path(recipe).stem


def _show_end(console: Any, folder: "RunFolder") -> None:
    from grpaint.evaluate import paired_difference
    from grpaint.run.report import table

    lines = folder.lines("evaluations.jsonl")
    difference = paired_difference(lines[0]["strict_by_prompt"], lines[-1]["strict_by_prompt"])
    console.print(table(lines[0], lines[-1], difference))
    console.print(f"run folder  {folder.path}", soft_wrap=True)
    picture = folder.samples / "before-after.png"
    if picture.is_file():
        console.print(f"pictures    {picture}", soft_wrap=True)


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
    from grpaint import provenance
    from grpaint.core.errors import ConfigError
    from grpaint.core.policy import Prompt
    from grpaint.evaluate import sample as draw
    from grpaint.run.report import save_picture, to_picture
    from grpaint.train import find_model, open_model

    given = [*(sets or []), *([f"evaluate.steps={steps}"] if steps else [])]
    given += [] if guidance is None else [f"evaluate.guidance={guidance}"]
    texts = list(prompts or [])
    if like:
        said = provenance.read(like)
        source, texts, seed = source or said["source"], texts or [said["prompt"]], said["seed"]
        given = provenance.sets(said) + given
    if not source or not texts:
        raise ConfigError("sample: name a run, checkpoint or file, and a caption in quotes; or --like PICTURE.")
    policy, recipe = open_model(source, given)
    file = find_model(source)[0]
    if like:
        provenance.check(like, said, file, recipe)
    if guidance is not None and getattr(policy, "distilled", False):
        raise ConfigError("--guidance: this model's guidance is distilled into it; give --set model.guidance=..")
    weights = provenance.digest(file)
    share = recipe.evaluate.tuned_share
    mixed = f"-tuned-{share:g}" if share < 1 else ""  # hybrid inference is named wherever its result goes
    for number, text in enumerate(texts):
        if snippet:
            typer.echo(provenance.snippet(policy, recipe, text, seed + number, file))
            continue
        image = draw(policy, [Prompt(text)], recipe.evaluate, seed=seed + number)[0]
        words = "-".join(re.findall(r"\w+", text))
        place = out / f"{number:02d}-{words[:60]}{mixed}.png"
        if like and place.resolve() == like.resolve():
            raise ConfigError(f"--out {out}: {place} is the picture to be repeated; name another folder.")
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
    sets: Sets = None,
) -> None:
    """Write a trained adapter or pipeline for other programs; it is loaded again and compared first."""
    from typing import get_args

    from grpaint import export as exporting
    from grpaint.core.errors import ConfigError
    from grpaint.train import find_model, open_model

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
    off = exporting.export(policy, find_model(source)[1], min(4, recipe.evaluate.steps), target, place)  # type: ignore[arg-type]
    typer.echo(f"{place}  reloaded: latents differ by {off:.1e}")


@app.command()
def evaluate(source: Source, as_json: AsJson = False, sets: Sets = None) -> None:
    """Judge a model on held-out prompts. --set takes evaluate.* keys."""
    from rich.console import Console

    from grpaint.evaluate import evaluate as judge
    from grpaint.run.report import summary
    from grpaint.train import open_model

    policy, recipe = open_model(source, sets or [])
    line = judge(policy, recipe.data, recipe.evaluate)
    if as_json:
        typer.echo(json.dumps(line))
    else:
        Console().print(summary(line))


@app.command()
def show(recipe: RecipeName = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """A recipe in full: its settings, its steps, its batches and what an iteration costs. Opens no weights."""
    from rich.console import Console

    from grpaint.run.config import DEFAULT, open_recipe, stage_of
    from grpaint.run.outlook import costs, step_table
    from grpaint.run.report import show_recipe

    name = recipe or DEFAULT["train"]
    loaded, settings = open_recipe(name, stage_of(name), sets or [])
    if as_json:
        typer.echo(json.dumps({"settings": settings, "steps": step_table(loaded), "costs": costs(loaded)}))
    else:
        show_recipe(Console(), name, settings, step_table(loaded), costs(loaded))


@app.command()
def doctor(recipe: RecipeName = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Check a recipe on this machine and model before it runs: PASS or FAIL, the likely cause and the mend."""
    from grpaint.backends.runtime import resolve
    from grpaint.doctor import examine
    from grpaint.run.config import TrainRecipe, open_recipe

    loaded, _ = open_recipe(recipe, "train", sets or [])
    assert isinstance(loaded, TrainRecipe)
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
    from grpaint.backends import hub
    from grpaint.run.config import locate, override, read_toml

    model = override(read_toml(locate(recipe)), sets or []).get("model", {})
    base = str(model.get("base", ""))
    if model.get("kind") != "diffusers" or not hub.is_hub_id(base):
        typer.echo("nothing to fetch: the recipe's model is on this machine")
        return
    files = hub.listing(base)
    for file in files:
        typer.echo(f"{file.size:>14,}  {file.sha256 or '-':64}  {file.name}")
    typer.echo(f"{sum(file.size for file in files):>14,}  bytes in {len(files)} files of {base}")
    if not dry_run:
        typer.echo(f'--set model.base="{hub.fetch(base, to)}"')


@app.command()
def compare(  # noqa: PLR0913 - reason: one argument a flag
    methods: Annotated[
        list[str], typer.Argument(metavar="METHOD...", help="Recipes of one world, or NAME=METHOD:KEY=VALUE;KEY=VALUE.")
    ],
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0,1,2,3,4",
    budget_evaluations: Annotated[int, typer.Option(help="Model evaluations of a run.")] = 0,
    budget_minutes: Annotated[float, typer.Option(help="Or processor minutes of a run, by a calibration.")] = 0.0,
    world: Annotated[str, typer.Option(help="scenes, scenes-epsilon, ..")] = "scenes",
    only: Annotated[list[str] | None, typer.Option(help="Run these methods alone; the page shows all.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts.")] = "1/1",
    search: Annotated[bool, typer.Option("--search", help="First search rates and clip ranges.")] = False,
    baseline: Annotated[str | None, typer.Option(help="Compared with; the first method if unset.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run.")] = False,
    out: Annotated[Path, typer.Option(help="Records, comparison.json, the page.")] = Path("comparison"),
    sets: Sets = None,
) -> None:
    """Train methods against each other at equal cost, over several seeds; repeat the command to go on."""
    from grpaint.compare import Comparison, asked
    from grpaint.run.jobs import Entry

    numbers, entries = asked("--seeds", seeds), tuple(Entry.read(word) for word in methods)
    comparison = Comparison(
        entries, world, numbers, budget_evaluations, budget_minutes, out.resolve(), tuple(sets or [])
    )
    comparison.check(only or [], baseline)
    names = [entry.name for entry in entries]
    comparison.go(
        only=only or names, shard=shard, search=search, baseline=baseline or names[0], dry=dry_run, log=typer.echo
    )


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, recipes, models, rewards or samplers")] = "methods",
    as_json: AsJson = False,
) -> None:
    """What there is by name."""
    from grpaint.run.listing import TOPICS, listing

    if what not in TOPICS:
        from grpaint.core.errors import ConfigError

        raise ConfigError(f"list {what}: no such list. There are: {', '.join(TOPICS)}.")
    found = listing(what)
    width = max(map(len, found)) + 2
    typer.echo(
        json.dumps(found) if as_json else "\n".join(f"{name:<{width}}{about}".rstrip() for name, about in found.items())
    )


def main() -> None:
    """The entry point: our errors are one line, a bad setting exits with 2, a stopped run with 130 or 143."""
    if "OMP_WAIT_POLICY" not in os.environ:  # before PyTorch loads: threads that spin for long stall on busy cores
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = _explain(error)
        if code is None:
            raise
        sys.exit(code)


def _explain(error: Exception) -> int | None:
    from grpaint.core.errors import CheckpointError, ConfigError, GrpaintError

    if isinstance(error, GrpaintError):
        typer.echo(f"grpaint: {' '.join(str(error).splitlines())}", err=True)
        reading = isinstance(error, CheckpointError) and not isinstance(error.__cause__, OSError)
        return 2 if reading or isinstance(error, ConfigError) else 1
    if isinstance(error, OSError):
        typer.echo(f"grpaint: {error.filename or ''}: {error.strerror or error}", err=True)
        return 1
    code = getattr(error, "exit_code", None)
    if code is not None and type(error).__name__ == "Stopped":
        typer.echo(f"grpaint: stopped by {error} after saving; go on with --resume.", err=True)
        return int(code)
    return None
