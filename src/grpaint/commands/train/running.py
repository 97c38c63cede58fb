"""A run from its opened folder to its end: rewards, data and weights are opened, the loop runs, its end is recorded."""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from grpaint.commands.train.judging import RecipeJudge
from grpaint.core.errors import (
    ConfigError,
    GrpaintError,
    ProcessesEnded,
    RankLost,
    RewardError,
    RunError,
)
from grpaint.core.importing import user_code_location
from grpaint.core.policy import PeopleReward
from grpaint.core.rng import uniform
from grpaint.core.runtime import Runtime, device_name, has_matrix_units
from grpaint.core.runtime import resolve as resolve_runtime
from grpaint.core.user_code import describe, interrupted
from grpaint.judge import sample_divided
from grpaint.learn.external_rewards import connect_rewards
from grpaint.learn.reward_checks import self_test
from grpaint.loops import sft, train
from grpaint.parallel.watch import run_end
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import (
    Recipe,
    SftRecipe,
    TrainRecipe,
)
from grpaint.recipe.pieces import Listed, Preparing, model_description
from grpaint.recipe.settings import Processes
from grpaint.report.figures import picture_sheet, save_picture
from grpaint.run.folder import RunFolder
from grpaint.run.loggers import start_loggers
from grpaint.run.loop import Loop
from grpaint.run.memory import memory
from grpaint.run.opening import load_model
from grpaint.run.page import PageWriter
from grpaint.run.pictures import save_prompts
from grpaint.run.shares import check_shares
from grpaint.run.signals import Listener, Stopped

SIGNALLED = 128  # exit codes above it are of signals
Log = Callable[[str], None]
Watcher = Callable[[int, dict[str, Any]], None]


def start(recipe: Recipe, folder: RunFolder, log: Log, watchers: list[Watcher], world: World = ONE) -> None:
    """Train a recipe in its run folder to the end, from the last checkpoint if there is one.

    Raises:
        GrpaintError: the run failed; its status is set, and the last checkpoint stays.
        Stopped: a signal stopped the run after its state was saved.
    """
    page = PageWriter(folder.path, log) if world.first else None
    try:
        with Listener() as listener, contextlib.ExitStack() as stack:
            folder.status(status="running", **_of_many(folder, world, processes=world.size, nodes=world.nodes))
            world.on_signal = partial(listener.request, notice=world.first)  # the agent's death reaches every rank
            world.on_end = partial(_end_of_others, folder, page)
            world.limit((recipe.processes or Processes()).start_s, "processes.start_s")
            check_shares(recipe, world)
            if isinstance(recipe, TrainRecipe):
                _join_rewards(recipe, folder, listener)
                stack.enter_context(connect_rewards({n: item.reward for n, item in recipe.rewards.items()}, log))
            loop = open_loop(recipe, folder, log, listener, world)
            loop.watchers.extend(watchers)
            if page:
                settings = recipe.evaluate
                save_prompts(folder.path, [p.text for p in recipe.data.held_out(settings.prompts, settings.seed)])
                log(f"page  {page.file.as_uri()}")
                page.write()
                loop.viewers.append(lambda _, drawing: page.refresh(evaluated=drawing.evaluated))
            if isinstance(recipe, SftRecipe):
                sft(recipe, loop)
            else:
                train(recipe, loop)
            _save_pictures(recipe, loop)
            folder.status(status="finished", iterations=loop.done)
    except BaseException as error:
        reason = _reason(folder, _first_cause(world, error))
        _record_end(folder, reason)
        if reason is error:
            raise
        raise reason from error
    finally:
        _rewrite(page)


def _join_rewards(recipe: TrainRecipe, folder: RunFolder, listener: Listener) -> None:
    """Tell the rewards that work in the run's folder where it is, after they are checked."""
    for name, item in recipe.rewards.items():
        if isinstance(item.reward, PeopleReward):
            item.check(f"rewards.{name}")
            item.reward.join_run(folder.path, lambda: listener.requested)


def _end_of_others(folder: RunFolder, page: PageWriter | None, message: str, code: int) -> None:
    """Record the end that another rank has recorded, before this process is ended while it is busy."""
    _record_end(folder, ProcessesEnded(message, code))
    _rewrite(page)


def _rewrite(page: PageWriter | None) -> None:
    """Write a page anew; one that was never written stays so."""
    if page and page.file.exists():
        page.write()


def _of_many(folder: RunFolder, world: World, **facts: Any) -> dict[str, Any]:
    """Return what run.json says of processes: nothing in a run that has always been of one."""
    return facts if world.size > 1 or "processes" in folder.facts() else {}


def _first_cause(world: World, error: BaseException) -> BaseException:
    """Return the end that another rank has recorded, if ``error`` only says that it is gone."""
    end = run_end(world) if isinstance(error, RankLost) else None
    return ProcessesEnded(end["message"], end["code"]) if end else error


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
    interruption = isinstance(error, Stopped | KeyboardInterrupt) or getattr(error, "exit_code", 0) > SIGNALLED
    reason = type(error).__name__ if isinstance(error, KeyboardInterrupt) else str(error)
    with contextlib.suppress(OSError):  # a full disk must not hide the first error
        folder.status(status="interrupted" if interruption else "failed", reason=reason or type(error).__name__)


def open_loop(recipe: Recipe, folder: RunFolder, log: Log, listener: Listener, world: World = ONE) -> Loop:
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
    sinks = start_loggers(recipe.loggers, folder.path, folder.settings(), log) if world.first else []
    with memory("load"):
        policy = load_model(recipe, world)
        if isinstance(recipe.data, Listed) and isinstance(policy, Preparing):
            encoded = policy.prepare(recipe.data.captions())
            if encoded:
                log(f"{encoded} captions encoded, and kept for later runs")
    loop = Loop(recipe, policy, folder, RecipeJudge(recipe, policy, world), listener, world)
    loop.watchers.extend(sink.write for sink in sinks)
    loop.viewers.extend(sink.show for sink in sinks)
    devices = world.gather_values(device_name(runtime.device))
    folder.status(
        device=runtime.device,
        precision=runtime.precision,
        threads=torch.get_num_threads(),
        **_of_many(folder, world, devices=devices),
    )
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

    One that works in the run's folder is left alone: nobody is asked about noise.

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
                if item.self_test and not isinstance(item.reward, PeopleReward):
                    self_test(name, item.reward, images, prompts)
            except RewardError as error:
                raise ConfigError(f"before the first iteration: {error}") from error


def _save_pictures(recipe: Recipe, loop: Loop) -> None:
    """Draw the same held-out prompts from the same start noise with the base and with the trained model."""
    count = min(recipe.evaluate.pictures, recipe.evaluate.prompts)
    if not count:
        return
    prompts = recipe.data.held_out(count, recipe.evaluate.seed)
    before = sample_divided(loop.policy, prompts, recipe.drawing, loop.world, "reference")
    after = sample_divided(loop.policy, prompts, recipe.drawing, loop.world, "average")
    if loop.world.first:
        sheet = picture_sheet([("before", before), ("after", after)], [prompt.text for prompt in prompts])
        save_picture(sheet, loop.folder.samples / "before-after.png")
