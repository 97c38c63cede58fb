"""The two loops: supervised, and reinforcement learning. Neither knows which method it runs."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grpaint.core.errors import ConfigError, RewardError, RunError
from grpaint.core.rng import permutation
from grpaint.core.runtime import Runtime, has_matrix_units
from grpaint.core.runtime import resolve as resolve_runtime
from grpaint.judge import best_guided, captioned, evaluate, sample
from grpaint.learn.advantage import advantage_shares, compute_advantage
from grpaint.learn.external_rewards import connect_rewards
from grpaint.learn.objective import Term
from grpaint.learn.penalty import AdaptiveKl
from grpaint.learn.reward_checks import ConstantWatch, self_test
from grpaint.learn.table import RewardSet, RewardTable
from grpaint.recipe.config import Recipe, SftRecipe, TrainRecipe
from grpaint.recipe.pieces import Listed, Model, Preparing, described
from grpaint.report.terminal import rows_of_pictures, save_picture
from grpaint.rollout.prune import ranks
from grpaint.rollout.rollout import Rollout
from grpaint.run.collect import Gathering
from grpaint.run.folder import RunFolder
from grpaint.run.loop import Loop
from grpaint.run.memory import memory
from grpaint.run.signals import Listener, Stopped

Log = Callable[[str], None]


def start(recipe: Recipe, folder: RunFolder, log: Log, watchers: list[Callable[[int, dict[str, Any]], None]]) -> None:
    """Run a recipe in its folder, from its last checkpoint if it has one, to its end.

    Raises:
        GrpaintError: with the status set and the last checkpoint kept.
        Stopped: after saving, when a signal asked for it.
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
            _pictures(recipe, loop)
            folder.status(status="finished", iterations=loop.done)
    except OSError as error:
        _note(folder, error)
        raise RunError(
            f"{folder.path}: could not be written ({error.strerror or error}). The last good checkpoint stays; mend "
            "that and go on with --resume."
        ) from error
    except (Exception, KeyboardInterrupt) as error:
        _note(folder, error)
        raise


def _note(folder: RunFolder, error: BaseException) -> None:
    """Set the status of a run that ends early."""
    status = "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
    with contextlib.suppress(OSError):  # a full disk must not hide what happened
        folder.status(status=status, reason=str(error) or type(error).__name__)


def open_loop(recipe: Recipe, folder: RunFolder, log: Log, listener: Listener) -> Loop:
    """Load the weights, and take up the last checkpoint where there is one."""
    runtime = resolve_runtime(recipe.device, recipe.precision)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    log(_machine(runtime))
    if about := described(recipe.model):
        log(f"model  {about}")
    rewards = recipe.rewards if isinstance(recipe, TrainRecipe) else {}
    for name, item in rewards.items():
        item.check(f"rewards.{name}")
    recipe.data.prepare(log)
    with memory("load"):
        policy = recipe.model.load(runtime)
        if isinstance(recipe.data, Listed) and isinstance(policy, Preparing):
            new = policy.prepare(recipe.data.captions())
            if new:
                log(f"{new} captions encoded, and kept for later runs")
    for logger in recipe.loggers.values():
        logger.start(folder.path, folder.settings())
    loop = Loop(recipe, policy, folder, lambda iteration: _judge(recipe, policy, iteration), listener)
    loop.watchers.extend(logger.write for logger in recipe.loggers.values())
    folder.status(device=runtime.device, precision=runtime.precision, threads=torch.get_num_threads())
    if isinstance(recipe, TrainRecipe):
        _self_tests(recipe, policy)
    checkpoint = folder.latest()
    if checkpoint:
        loop.resume(checkpoint)
        log(f"resumed from {checkpoint}")
    else:
        folder.cut(-1)
    return loop


def _self_tests(recipe: TrainRecipe, policy: Model) -> None:
    """Ask every reward about its pair, and a reward without one about two images of noise.

    Raises:
        ConfigError: where one fails; nothing has been sampled yet.
    """
    prompts = recipe.data.prompts(1, 0, recipe.train.seed) * 2  # of one: some rewards compare a prompt's images
    with memory("reward"), torch.no_grad():
        images = policy.decode(policy.noise((recipe.train.seed, "self-test"), range(len(prompts))))
        for name, item in recipe.rewards.items():
            try:
                if item.self_test:
                    self_test(name, item.reward, images, prompts)
            except RewardError as error:
                raise ConfigError(f"before the first iteration: {error}") from error


def _machine(runtime: Runtime) -> str:
    where = f"{runtime.device}, {runtime.precision}, {torch.get_num_threads()} threads"
    if runtime.device == "cpu" and not has_matrix_units():
        return f"{where}; this processor has no bf16 matrix units (AMX): expect 2 to 4 times the documented time"
    return where


def rewards_of(recipe: Recipe) -> RewardSet | None:
    """The rewards that a model is judged by, with the weights of its recipe; a supervised one has none.

    What a floor adds to a weight belongs to training: it changes from one evaluation to the next.
    """
    if not isinstance(recipe, TrainRecipe):
        return None
    weights = {name: item.weight for name, item in recipe.rewards.items()}
    return dataclasses.replace(recipe.reward_set(), weights=weights)


def _judge(recipe: Recipe, policy: Model, iteration: int) -> dict[str, Any]:
    rewards = rewards_of(recipe)
    line = evaluate(policy, recipe.data, recipe.evaluate, rewards=rewards)
    if iteration == 0 and rewards:
        line["base_guided"] = best_guided(policy, recipe.data, recipe.evaluate, rewards)
    return line


def _pictures(recipe: Recipe, loop: Loop) -> None:
    """The same held-out prompts and the same start noise, before and after."""
    count = min(recipe.evaluate.pictures, recipe.evaluate.prompts)
    if not count:
        return
    prompts = recipe.data.held_out(count, recipe.evaluate.seed)
    before = sample(loop.policy, prompts, recipe.evaluate, weights="reference")
    after = sample(loop.policy, prompts, recipe.evaluate, weights="average")
    page = rows_of_pictures([("before", before), ("after", after)], [prompt.text for prompt in prompts])
    save_picture(page, loop.folder.samples / "before-after.png")


def sft(recipe: SftRecipe, loop: Loop) -> None:
    """Stage one: the denoising loss on captioned images."""
    for iteration in loop.iterations():
        with loop.phase("update"):
            images, prompts = recipe.data.batch(recipe.train.batch, iteration, recipe.train.seed)
            batch = captioned(loop.policy, images, prompts, iteration=iteration, seed=recipe.train.seed)
            nothing = torch.zeros(len(images))
            measures = loop.update(partial(recipe.objective, loop.policy, batch, nothing), batch)
        loop.record({f"sft/{name}": value for name, value in measures.items()})


def train(recipe: TrainRecipe, loop: Loop) -> None:
    """Stage two: roll out groups, score them, and move towards what scored above its group."""
    settings, policy = recipe.train, loop.policy
    gather = Gathering(recipe, loop)
    watch = ConstantWatch(settings.constant)
    if not loop.done:
        _follow(recipe, policy, -1)
    for iteration in loop.iterations():
        rollout, table = gather(iteration)
        with loop.phase("reward"), torch.no_grad():
            watch.observe(table, recipe.reward_set().rewards, rollout.prompts)
            advantage = compute_advantage(recipe.advantage, table, rollout)
        with loop.phase("update"):
            for number, rows in enumerate(_parts(rollout, settings.updates)):
                turn = iteration * settings.updates + number
                batch = rollout.rows(rows)
                measures = loop.update(partial(_terms, recipe, policy, batch, advantage[rows], turn), batch)
                if number:  # later updates of a rollout are off-policy: their ratio is not an error
                    measures = {name: value for name, value in measures.items() if "ratio_error" not in name}
                loop.record({f"policy/{name}": value for name, value in measures.items()})
        loop.record(_summary(rollout, table, advantage) | _audit(recipe, rollout, table))
        loop.record(_of_rewards(recipe, rollout, table))
        _observe(recipe, measures, table)
        _follow(recipe, policy, iteration)


def _terms(recipe: TrainRecipe, policy: Model, part: Rollout, advantage: Tensor, turn: int) -> Iterator[Term]:
    """The objective's terms, and the anchor's where there was anything to anchor."""
    moved, terms = False, recipe.objective(policy, part, advantage)
    if not isinstance(terms, Iterable) or isinstance(terms, Tensor):
        raise RunError(f"objective: it gave {type(terms).__name__}, and an iterator of Terms is wanted.")
    for term in terms:
        moved = True
        yield term
    if moved and recipe.anchor:
        images, prompts = recipe.data.batch(recipe.anchor.batch, turn, part.seed)
        yield from recipe.anchor(policy, captioned(policy, images, prompts, iteration=turn, seed=part.seed))


def _parts(rollout: Rollout, updates: int) -> Iterator[Tensor]:
    """The rows of each update of a rollout, in a keyed order; all of them in theirs for one."""
    count = len(rollout.group)
    order = torch.arange(count)
    if updates > 1:
        order = permutation((rollout.seed, rollout.iteration, "updates"), count)
    yield from (part.sort().values for part in order.tensor_split(updates))


def _summary(rollout: Rollout, table: RewardTable, advantage: Tensor) -> dict[str, float]:
    """The numbers of an iteration that rewards and advantages give."""
    out: dict[str, float] = {}
    for name, column in table.columns.items():
        where = table.applies.get(name, torch.ones_like(rollout.group, dtype=torch.bool))
        if where.any():
            out[f"reward/{name}"] = column[where].mean().item()
            out[f"reward/{name}/std"] = column[where].std(correction=0).item()
    moving = advantage.reshape(len(advantage), -1).ne(0).any(1)
    groups = rollout.group.unique()
    flat = sum(not moving[rollout.group == number].any() for number in groups.tolist())
    out["advantage/zero_spread_groups"] = int(flat)
    out["advantage/abs_mean"] = advantage.abs().mean().item()
    return out


def _of_rewards(recipe: TrainRecipe, rollout: Rollout, table: RewardTable) -> dict[str, float]:
    """What there is to say about single rewards: captions cut, floors, shares of the advantage."""
    cut = recipe.reward_set().truncated(rollout.prompts)
    out = {f"reward/{name}/truncated": share for name, share in cut.items()}
    for name, item in recipe.rewards.items():
        if item.floor:
            out[f"reward/{name}/multiplier"] = item.floor.multiplier
    if len(table.columns) > 1:
        parts = advantage_shares(recipe.advantage, table, rollout)
        out |= {f"advantage/share/{name}": share for name, share in parts.items()}
    return out


def _audit(recipe: TrainRecipe, rollout: Rollout, table: RewardTable) -> dict[str, float]:
    """How well previews ranked a group that was not pruned (Spearman), in the iterations that have one."""
    funnel = recipe.plan.prune
    audited = rollout.group == 0
    if not (funnel and funnel.keep and audited.sum() > funnel.keep[-1]):
        return {}
    final = ranks(table.total()[audited])
    pairs = {k: torch.stack([ranks(scores[audited]), final]) for k, scores in rollout.previews.items()}
    found = {f"prune/rank_correlation/{k}": pair.corrcoef()[0, 1].item() for k, pair in pairs.items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}  # without spread there is none


def _observe(recipe: TrainRecipe, measures: dict[str, float], table: RewardTable) -> None:
    for name, item in recipe.rewards.items():
        if item.floor:
            scores = table.columns[name]
            item.floor.observe(scores[table.applies[name]] if name in table.applies else scores)
    penalty = getattr(recipe.objective, "penalty", None)
    if isinstance(penalty, AdaptiveKl) and "kl" in measures:
        penalty.observe(measures["kl"])


def _follow(recipe: TrainRecipe, policy: Model, iteration: int) -> None:
    """Move the weights that sample towards the current ones, where they are others; -1 makes them."""
    if recipe.behaviour:
        policy.blend("behaviour", recipe.behaviour.keep(iteration))
