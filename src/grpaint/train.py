"""The two loops: supervised, and reinforcement learning. Neither knows which method it runs."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpaint.backends.runtime import Runtime, has_matrix_units
from grpaint.backends.runtime import resolve as resolve_runtime
from grpaint.core.errors import CheckpointError, ConfigError, RewardError, RunError
from grpaint.core.files import read_weights, unflatten
from grpaint.core.rng import permutation
from grpaint.evaluate import best_guided, captioned, evaluate, sample
from grpaint.learn.advantage import shares
from grpaint.learn.elsewhere import running
from grpaint.learn.objective import Term
from grpaint.learn.penalty import AdaptiveKl
from grpaint.learn.reward_checks import ConstantWatch, self_test
from grpaint.learn.table import RewardSet, RewardTable
from grpaint.rollout.prune import ranks
from grpaint.rollout.rollout import Rollout
from grpaint.run.config import Recipe, SftRecipe, TrainRecipe, locate, override, read_toml, resolve
from grpaint.run.folder import RunFolder, find_checkpoint
from grpaint.run.gathering import Gathering
from grpaint.run.loop import Listener, Loop, Stopped, memory
from grpaint.run.pieces import Listed, Model, Preparing, described
from grpaint.run.report import rows_of_pictures, save_picture

Log = Callable[[str], None]
# what --resume may change besides: how a reward in another process is reached, which changes nothing of what it says;
# and how work is split into parts, which changes gradients by rounding alone
MENDED = (
    r"train\.overlap|rewards\.[^.]+\."
    "(urls?|token_env|timeout_s|start_s|retries|restarts|backoff_s|concurrency|python)"
    r"|model\.(batch|vae_batch|checkpointing)|objective\.minibatch|anchor\.loss\.minibatch"
)


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
                stack.enter_context(running(recipe.reward_set().rewards, log))
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
    """The rewards of a recipe; a supervised one has none."""
    return recipe.reward_set() if isinstance(recipe, TrainRecipe) else None


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
    before = sample(loop.policy, prompts, recipe.evaluate, seed=recipe.evaluate.seed, weights="reference")
    after = sample(loop.policy, prompts, recipe.evaluate, seed=recipe.evaluate.seed, weights="average")
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
            advantage = recipe.advantage(table, rollout)
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
    moved = False
    for term in recipe.objective(policy, part, advantage):
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
        parts = shares(recipe.advantage, table, rollout)
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


def check_resume(folder: RunFolder, kept: dict[str, Any], asked: dict[str, Any]) -> None:
    """Hold a run to its own settings, save for a larger ``train.iterations`` and what :data:`MENDED` names.

    ``kept`` are the settings of run.toml, ``asked`` those of this command.

    Raises:
        ConfigError: where a setting differs.
    """
    for key, old, new in _differences(kept, asked):
        if key == "train.iterations" and isinstance(new, int) and new > old:
            continue
        if re.fullmatch(MENDED, key):
            continue
        raise ConfigError(
            f"{key} = {new!r}: the run {folder.path} has {old!r}; --resume repeats a run's settings (only a larger "
            "train.iterations, where rewards are found, and model.batch, model.vae_batch, model.checkpointing and "
            "minibatch may differ). Start another run with another --name."
        )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def find_model(source: str) -> tuple[Path, dict[str, Any]]:
    """The weight file that a run, checkpoint, export or file means, and the recipe's table that goes with it.

    Raises:
        ConfigError, CheckpointError: where there is none, or it cannot be read.
    """
    file = find_checkpoint(source)
    run = next((parent for parent in file.parents if (parent / "run.toml").is_file()), None)
    if run:
        return file, read_toml(run / "run.toml")
    header = read_weights(file)[1]
    if "grpaint" in header:
        return file, _from_header(file, header["grpaint"])
    epsilon = header.get("parametrisation") == "epsilon"
    return file, read_toml(locate("scenes-epsilon/sft" if epsilon else "scenes/sft"))


def _from_header(file: Path, text: str) -> dict[str, Any]:
    """How to draw with an exported file: its model and evaluation, by our own names; a file brings no code."""
    try:
        said = json.loads(text)["recipe"]
        kept = {key: said[key] for key in ("model", "evaluate", "precision") if key in said}
        kept.get("model", {}).pop("cache", None)  # a folder of the machine that wrote it
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: its header does not say how to draw with it ({error}).") from error
    refuse_code(kept, str(file))
    return override(read_toml(locate("scenes/sft")), []) | kept


def refuse_code(table: Any, where: str) -> None:
    """Refuse a file's own ``kind`` or ``family`` that names code.

    Raises:
        ConfigError: where one is not a plain name.
    """
    for key, value in table.items() if isinstance(table, dict) else ():
        if key in ("kind", "family") and ":" in str(value):
            raise ConfigError(
                f'{where}: asks for code, {key} = "{value}"; only names of grpaint\'s own are taken from a file.'
            )
        refuse_code(value, where)


def open_model(source: str, sets: Sequence[str] = ()) -> tuple[Model, Recipe]:
    """The model of a run, checkpoint or weight file, and the recipe to judge it by.

    Raises:
        ConfigError, CheckpointError: where there is none, or it cannot be read.
    """
    file, table = find_model(source)
    recipe, _ = resolve(override(table, sets), table.get("stage", "train"))
    runtime = resolve_runtime(recipe.device, recipe.precision)
    if recipe.evaluate.tuned_share == 1:
        return recipe.model.from_file(str(file)).load(runtime), recipe
    training = file.parent / "training.safetensors"
    if not training.is_file():
        raise ConfigError(
            f"evaluate.tuned_share = {recipe.evaluate.tuned_share}: the base takes the other steps, and {source} does "
            "not hold it; name a run or one of its checkpoint folders."
        )
    policy = recipe.model.load(runtime)
    policy.weights.load(unflatten(read_weights(training)[0]))
    return policy, recipe
