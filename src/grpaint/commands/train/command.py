"""Open a recipe or a run, alone or with other processes, train to the end, and print the result."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from grpaint.commands.train.running import start
from grpaint.core.errors import (
    CheckpointError,
    ConfigError,
    MemoryExhausted,
)
from grpaint.measures.intervals import paired_difference
from grpaint.measures.score import deciding_line, score_name
from grpaint.parallel.join import join_group
from grpaint.parallel.world import World
from grpaint.recipe.config import (
    DEFAULT,
    Recipe,
    open_recipe,
    pin_commits,
    resolve,
)
from grpaint.recipe.stand_ins import stand_ins, with_stand_ins
from grpaint.report.console import Terminal
from grpaint.report.terminal import before_after_table, hacking_line
from grpaint.run.folder import RunFolder
from grpaint.run.page import PAGE
from grpaint.run.progress import Progress
from grpaint.run.read_only import ReadOnlyRun
from grpaint.run.resume import all_sets, settings_to_resume

Advice = Callable[[Mapping[str, Any], str, str], Iterable[str]]


def run(
    stage: str, name: str | None, sets: list[str], runs: Path, run_name: str | None, *, resume: bool, advice: Advice
) -> Path:
    """Train the recipe ``name`` in ``runs/run_name``, print the result, and return that folder.

    ``resume`` continues from a checkpoint.

    ``advice`` is called with the settings, the stage and the phase that ran out of memory; it returns what to lower.

    Raises:
        GrpaintError: the recipe or a setting is refused, or the run cannot continue.
        Stopped: a signal stopped the run after its state was saved.
    """
    with join_group() as world:
        path = runs / _folder_name(stage, name, runs, run_name)  # within the group: its error is then said once
        if not world.first:
            _follow(world, stage, advice)
        elif resume or (world.restarts and (path / "run.toml").is_file()):  # what a rank that died had begun goes on
            _resume(world, path, stage, name, sets, advice)
        else:
            recipe, settings = pin_commits(*open_recipe(name, stage, sets))
            with RunFolder.create(path, settings, sets) as folder:
                try:
                    _train(world, recipe, settings, folder, advice)
                except (ConfigError, CheckpointError):
                    if not folder.lines("evaluations.jsonl"):
                        folder.discard()
                    raise
        return path


def _folder_name(stage: str, name: str | None, runs: Path, run_name: str | None) -> str:
    """Return the name of the run's folder, by default the recipe's."""
    run_name = Path(DEFAULT[stage] if name is None else name).stem if run_name is None else run_name
    if not run_name or Path(run_name).name != run_name or run_name.startswith("."):
        raise ConfigError(
            f'--name "{run_name}": the name of a folder under {runs}, without / and not beginning with a dot.'
        )
    return run_name


def _resume(world: World, path: Path, stage: str, name: str | None, sets: list[str], advice: Advice) -> None:
    """Go on with the run at ``path``, unless it has finished."""
    with RunFolder.open(path) as folder:
        recipe, settings = settings_to_resume(folder, stage, name, sets)
        facts = folder.facts()
        if facts.get("status") == "finished" and settings == resolve(folder.settings(), stage)[1]:
            done = facts.get("iterations", recipe.train.iterations)
            limits = "train.iterations" + (" and train.evaluations" if recipe.train.evaluations else "")
            Terminal().print(f"{path} has finished its {done} iterations; with larger {limits} it goes on.")
            world.from_first(None)
            return
        folder.keep_settings(settings)
        folder.status(sets=all_sets(folder, sets))
        _train(world, recipe, settings, folder, advice)


def _follow(world: World, stage: str, advice: Advice) -> None:
    """Train as a rank besides the first, in the run that rank 0 has opened."""
    opened = world.from_first(None)
    if opened:
        settings = opened["settings"]  # a reward that this machine's ranks share is built by the first of them alone
        recipe, _ = resolve(with_stand_ins(settings, opened["stand_ins"] if world.local_rank else {}), stage)
        _train(world, recipe, settings, ReadOnlyRun(Path(opened["path"]), opened["checkpoint"]), advice)


def _agree_on_folder(world: World, recipe: Recipe, settings: Mapping[str, Any], folder: RunFolder) -> None:
    """Tell the other ranks of the run that rank 0 has opened, and check that all see it.

    Raises:
        ConfigError: some do not; the message names them.
    """
    if world.first:
        checkpoint = folder.resumable.name if folder.resumable else None
        opened = {"settings": settings, "stand_ins": stand_ins(recipe)}
        world.from_first(opened | {"path": str(folder.path.resolve()), "checkpoint": checkpoint})
    troubles = world.gather_values(folder.trouble() if isinstance(folder, ReadOnlyRun) else "")
    for rank, trouble in enumerate(troubles):
        if trouble:
            raise ConfigError(f"rank {rank} {trouble}; put --runs on a disk that every machine shares.")


def _train(world: World, recipe: Recipe, settings: Mapping[str, Any], folder: RunFolder, advice: Advice) -> None:
    """Train in a run folder, which rank 0 has locked, and print the result."""
    _agree_on_folder(world, recipe, settings, folder)
    console = Terminal(quiet=not world.first)
    try:
        with Progress(console, recipe.train) as progress:
            start(recipe, folder, progress.log, [progress.update], world)
    except MemoryExhausted as error:
        if world.size == 1:  # the others would wait for it; grpaint plan gives the same
            _print_advice(console, advice, settings, recipe.stage, error.phase)
        raise
    _print_result(console, folder)


def _print_advice(console: Terminal, advice: Advice, settings: Mapping[str, Any], stage: str, phase: str) -> None:
    """Print the settings that would have lowered the peak memory of a phase."""
    try:
        for line in advice(settings, stage, phase):
            console.print(line, soft_wrap=True)
    except Exception as error:  # noqa: BLE001 - reason: an error in the advice must not hide the out-of-memory error
        console.print(f"the advice failed: {error}", soft_wrap=True)


def _print_result(console: Terminal, folder: RunFolder) -> None:
    """Print the evaluations before and after training, an alarm of reward hacking, and the paths of the run."""
    lines = folder.lines("evaluations.jsonl")
    if lines and lines[0]["iteration"] == 0:  # not where a damaged line was left out
        pairs = [(lines[0], lines[-1])]
        if "deploy" in lines[0] and "deploy" in lines[-1]:
            pairs.append((deciding_line(lines[0]), deciding_line(lines[-1])))
        for first, last in pairs:
            by_prompt = f"{score_name(last)}_by_prompt"
            before, after = first.get(by_prompt, []), last.get(by_prompt, [])
            difference = paired_difference(before, after) if after and len(before) == len(after) else None
            console.print(before_after_table(first, last, difference))
    if alarm := hacking_line(folder.facts()):
        console.print(alarm, soft_wrap=True)
    console.print(f"run folder  {folder.path}", soft_wrap=True)
    picture = folder.samples / "before-after.png"
    if picture.is_file():
        console.print(f"pictures    {picture}", soft_wrap=True)
    page = folder.path / PAGE
    if page.is_file():
        console.print(f"page        {page.resolve().as_uri()}", soft_wrap=True)
