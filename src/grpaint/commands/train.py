"""``grpaint train`` and ``grpaint sft``: open a recipe or a run, train to the end, and print the result."""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from grpaint.core.errors import (
    CheckpointError,
    ConfigError,
    GrpaintError,
    MemoryExhausted,
    RewardError,
    RunError,
)
from grpaint.core.importing import user_code_location
from grpaint.core.rng import uniform
from grpaint.core.runtime import Runtime, has_matrix_units
from grpaint.core.runtime import resolve as resolve_runtime
from grpaint.core.user_code import describe, interrupted
from grpaint.judge import best_guided, evaluate, judging_rewards, paired_difference, sample
from grpaint.learn.external_rewards import connect_rewards
from grpaint.learn.reward_checks import self_test
from grpaint.loops import sft, train
from grpaint.measures.score import score_name
from grpaint.recipe.config import (
    DEFAULT,
    Recipe,
    SftRecipe,
    TrainRecipe,
    open_recipe,
    pin_commits,
    resolve,
)
from grpaint.recipe.pieces import Listed, Model, Preparing, model_description
from grpaint.report.console import Terminal
from grpaint.report.figures import picture_sheet, save_picture
from grpaint.report.terminal import before_after_table, hacking_line
from grpaint.run.folder import RunFolder
from grpaint.run.loggers import start_loggers
from grpaint.run.loop import Loop
from grpaint.run.memory import memory
from grpaint.run.progress import Progress
from grpaint.run.resume import all_sets, settings_to_resume
from grpaint.run.signals import Listener, Stopped

Log = Callable[[str], None]
Watcher = Callable[[int, dict[str, Any]], None]
Advice = Callable[[Mapping[str, Any], str, str], Iterable[str]]


def run(
    stage: str, name: str | None, sets: list[str], runs: Path, run_name: str | None, *, resume: bool, advice: Advice
) -> None:
    """Train the recipe ``name`` in ``runs/run_name`` and print the result; ``resume`` continues from a checkpoint.

    ``advice`` is called with the settings, the stage and the phase that ran out of memory; it returns what to lower.

    Raises:
        GrpaintError: the recipe or a setting is refused, or the run cannot continue.
        Stopped: a signal stopped the run after its state was saved.
    """
    console = Terminal()
    run_name = Path(DEFAULT[stage] if name is None else name).stem if run_name is None else run_name
    if not run_name or Path(run_name).name != run_name or run_name.startswith("."):
        raise ConfigError(
            f'--name "{run_name}": the name of a folder under {runs}, without / and not beginning with a dot.'
        )
    path = runs / run_name
    if resume:
        with RunFolder.open(path) as folder:
            recipe, settings = settings_to_resume(folder, stage, name, sets)
            facts = folder.facts()
            if facts.get("status") == "finished" and settings == resolve(folder.settings(), stage)[1]:
                done = facts.get("iterations", recipe.train.iterations)
                limits = "train.iterations" + (" and train.evaluations" if recipe.train.evaluations else "")
                console.print(f"{path} has finished its {done} iterations; with larger {limits} it goes on.")
                return
            folder.keep_settings(settings)
            folder.status(sets=all_sets(folder, sets))
            _train(console, recipe, settings, folder, advice)
    else:
        recipe, settings = pin_commits(*open_recipe(name, stage, sets))
        with RunFolder.create(path, settings, sets) as folder:
            try:
                _train(console, recipe, settings, folder, advice)
            except (ConfigError, CheckpointError):
                if not folder.lines("evaluations.jsonl"):
                    folder.discard()
                raise


def _train(console: Terminal, recipe: Recipe, settings: Mapping[str, Any], folder: RunFolder, advice: Advice) -> None:
    """Train in a locked run folder, and print the result."""
    try:
        with Progress(console, recipe.train) as progress:
            start(recipe, folder, progress.log, [progress.update])
    except MemoryExhausted as error:
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
        first, last = lines[0], lines[-1]
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


def start(recipe: Recipe, folder: RunFolder, log: Log, watchers: list[Watcher]) -> None:
    """Train a recipe in its run folder to the end, from the last checkpoint if there is one.

    Raises:
        GrpaintError: the run failed; its status is set, and the last checkpoint stays.
        Stopped: a signal stopped the run after its state was saved.
    """
    try:
        with Listener() as listener, contextlib.ExitStack() as stack:
            folder.status(status="running")
            if isinstance(recipe, TrainRecipe):
                stack.enter_context(connect_rewards(recipe.reward_set().rewards, log))
            loop = open_loop(recipe, folder, log, listener)
            loop.watchers.extend(watchers)
            if isinstance(recipe, SftRecipe):
                sft(recipe, loop)
            else:
                train(recipe, loop)
            _save_pictures(recipe, loop)
            folder.status(status="finished", iterations=loop.done)
    except BaseException as error:
        reason = _reason(folder, error)
        _record_end(folder, reason)
        if reason is error:
            raise
        raise reason from error


def _reason(folder: RunFolder, error: BaseException) -> BaseException:
    """Return what ended a run: an error of ours that names a user's own code or the folder, or else ``error``."""
    if isinstance(error, GrpaintError | Stopped) or interrupted(error):
        return error
    if place := user_code_location(error):
        return RunError(f"{place}: {describe(error)}")
    if isinstance(error, OSError):
        return RunError(
            f"{error.filename or folder.path}: could not be written ({error.strerror or error}). The last good "
            "checkpoint stays; fix that and continue with --resume."
        )
    return error


def _record_end(folder: RunFolder, error: BaseException) -> None:
    """Write the status of a run that ends early."""
    interruption = isinstance(error, Stopped | KeyboardInterrupt)
    reason = type(error).__name__ if isinstance(error, KeyboardInterrupt) else str(error)
    with contextlib.suppress(OSError):  # a full disk must not hide the first error
        folder.status(status="interrupted" if interruption else "failed", reason=reason or type(error).__name__)


def open_loop(recipe: Recipe, folder: RunFolder, log: Log, listener: Listener) -> Loop:
    """Check rewards and data, start loggers, load the weights; return the loop at the last checkpoint, if any.

    Raises:
        GrpaintError: weights, data or a reward cannot be opened, or a reward fails its self-test.
    """
    runtime = resolve_runtime(recipe.device, recipe.precision)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    log(_machine(runtime))
    if about := model_description(recipe.model):
        log(f"model  {about}")
    rewards = recipe.rewards if isinstance(recipe, TrainRecipe) else {}
    for name, item in rewards.items():
        item.check(f"rewards.{name}")
    recipe.data.prepare(log)
    check_captions = getattr(recipe.model, "check_captions", None)
    if check_captions and isinstance(recipe.data, Listed):
        check_captions(recipe.data.captions())
    if isinstance(recipe, TrainRecipe):
        _self_test_rewards(recipe, runtime)
    sinks = start_loggers(recipe.loggers, folder.path, folder.settings(), log)
    with memory("load"):
        policy = recipe.model.load(runtime)
        if isinstance(recipe.data, Listed) and isinstance(policy, Preparing):
            encoded = policy.prepare(recipe.data.captions())
            if encoded:
                log(f"{encoded} captions encoded, and kept for later runs")
    loop = Loop(recipe, policy, folder, lambda iteration: _evaluation(recipe, policy, iteration), listener)
    loop.watchers.extend(sinks)
    folder.status(device=runtime.device, precision=runtime.precision, threads=torch.get_num_threads())
    if checkpoint := folder.resumable:
        loop.resume(checkpoint)
        log(f"resumed from {checkpoint}")
    else:
        folder.cut(-1)
    return loop


def _machine(runtime: Runtime) -> str:
    """The device, precision and threads of the run, with a warning if the processor is slow."""
    where = f"{runtime.device}, {runtime.precision}, {torch.get_num_threads()} threads"
    if runtime.device == "cpu" and not has_matrix_units():
        return f"{where}; this processor has no bf16 matrix units (AMX): expect 2 to 4 times the documented time"
    return where


def _self_test_rewards(recipe: TrainRecipe, runtime: Runtime) -> None:
    """Run each reward on its own test pair, or on two images of noise in the model's size if it has none.

    Raises:
        ConfigError: a reward fails.
    """
    # the same prompt twice, because some rewards compare the images of a prompt
    prompts = recipe.data.prompts(1, 0, recipe.train.seed) * 2
    with memory("reward"), torch.no_grad():
        shape = (len(prompts), 3, *recipe.model.pixels)
        images = uniform((recipe.train.seed, "self-test"), math.prod(shape)).view(shape).to(runtime.device)
        for name, item in recipe.rewards.items():
            try:
                if item.self_test:
                    self_test(name, item.reward, images, prompts)
            except RewardError as error:
                raise ConfigError(f"before the first iteration: {error}") from error


def _evaluation(recipe: Recipe, policy: Model, iteration: int) -> dict[str, Any]:
    """Evaluate the model; at iteration 0 the base is also evaluated at its best guidance."""
    rewards = judging_rewards(recipe)
    line = evaluate(policy, recipe.data, recipe.evaluate, rewards=rewards)
    if iteration == 0 and rewards:
        line["base_guided"] = best_guided(policy, recipe.data, recipe.evaluate, rewards)
    return line


def _save_pictures(recipe: Recipe, loop: Loop) -> None:
    """Draw the same held-out prompts from the same start noise with the base and with the trained model."""
    count = min(recipe.evaluate.pictures, recipe.evaluate.prompts)
    if not count:
        return
    prompts = recipe.data.held_out(count, recipe.evaluate.seed)
    before = sample(loop.policy, prompts, recipe.evaluate, weights="reference")
    after = sample(loop.policy, prompts, recipe.evaluate, weights="average")
    sheet = picture_sheet([("before", before), ("after", after)], [prompt.text for prompt in prompts])
    save_picture(sheet, loop.folder.samples / "before-after.png")
