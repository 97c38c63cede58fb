"""Run a recipe's own loop for two iterations on fake networks, to predict its memory by phase."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from grpaint.backends.fake import FakeRuntime, emulate_device
from grpaint.backends.scenes import ScenePolicy
from grpaint.commands.estimate.deadline import explained
from grpaint.commands.estimate.ledger import Ledger, size
from grpaint.commands.estimate.replay import Replay, ReplayedFamily, Traces
from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.judge import sample
from grpaint.learn import objective as objectives
from grpaint.learn.forward import ForwardObjective
from grpaint.learn.objective import Term
from grpaint.loops import sft, train
from grpaint.parallel.sharding import repeated_blocks
from grpaint.recipe.config import Recipe, SftRecipe
from grpaint.recipe.pieces import Data, Model
from grpaint.rollout.rollout import Rollout
from grpaint.run.agreement import with_anchor
from grpaint.run.unsaved import UnsavedLoop
from grpaint.run.updates import Terms

STAND_IN = "a photograph of an old stone bridge over a river in the morning, with trees and a small boat on it"
PHASES = ("load", "encode", "rollout", "decode", "reward", "update", "evaluate")


@dataclass(frozen=True)
class Memory:
    """Bytes: ``peaks`` by phase, what is held through all of them, and files by name; ``parameters`` are numbers.

    ``network``: of the parameters of the network that samples, ``block``: of its largest block, ``rest``: of no block.
    """

    peaks: dict[str, int]
    weights: int
    copies: int
    optimizer: int
    checkpoint: dict[str, int]
    parameters: int
    trainable: int
    network: int
    block: int
    rest: int


class Rehearsal(UnsavedLoop):
    """The loop of a fake model: takes no decision by a gradient's value, and evaluates between its iterations."""

    def __init__(self, recipe: Recipe, policy: Model, ledger: Ledger) -> None:
        super().__init__(recipe, policy)
        self._largest_batch = 0
        self.ledger, self.scaler = ledger, torch.amp.GradScaler("cpu", enabled=False)  # an enabled one reads values

    def iterations(self) -> Iterator[int]:
        for number in super().iterations():
            self._largest_batch = 0
            yield number
            if number == 0:
                recipe = self.recipe
                prompts = recipe.data.held_out(recipe.evaluate.prompts, recipe.evaluate.seed)
                for settings in filter(None, (recipe.evaluate, recipe.deployed)):
                    with self.phase("evaluate"):
                        sample(self.policy, prompts, settings)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with self.ledger.phase(name):
            yield

    def update(
        self, terms: Terms, batch: Rollout, advantage: Tensor, anchor: Callable[[], Iterable[Term]] = tuple
    ) -> dict[str, float]:
        if len(batch.group) <= self._largest_batch:  # an update of as many rows was part of this iteration
            return {}
        self._largest_batch = len(batch.group)
        minibatch = getattr(self.recipe.objective, "minibatch", 0)
        own = terms(*_representative(batch, advantage, minibatch))
        if self.backward(with_anchor(own, anchor, self.world)):
            self.clip()
            self.step()
        return {}


def _representative(batch: Rollout, advantage: Tensor, minibatch: int) -> tuple[Rollout, Tensor]:
    """The part of a batch whose update has the same peaks: the first and the last step, two minibatches of rows."""
    if any(transition.live for transition in batch.transitions):
        return batch, advantage
    steps = batch.transitions if len(batch.transitions) < 3 else (batch.transitions[0], batch.transitions[-1])
    batch = dataclasses.replace(batch, transitions=steps)
    rows = (advantage != 0).reshape(len(advantage), -1).any(1).nonzero()[:, 0]
    rows = rows if len(rows) else torch.arange(len(advantage))
    if not minibatch or len(rows) <= 2 * minibatch:
        return batch, advantage
    return batch.rows(rows[: 2 * minibatch]), advantage[rows[: 2 * minibatch]]


@dataclass(frozen=True)
class StandInReward:
    """Returns scores that differ within every group; ``reward``, if given, is computed and its scores dropped."""

    needs_reference: bool
    reward: Callable[[Tensor, Sequence[Prompt]], Any] | None = None

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if self.reward:
            self.reward(images, prompts)
        return torch.arange(len(prompts)) * 0.618 % 1


class StandInData:
    """Captions, and references if the recipe has them, in place of data whose files are not there."""

    captioned = True

    def __init__(self, data: Any) -> None:
        side = getattr(data, "resolution", 0)
        reference = torch.zeros(3, side, side) if getattr(data, "references", False) else None
        self._prompt = Prompt(STAND_IN, {}, reference)

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """The same prompt ``count`` times."""
        return [self._prompt] * count

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """The same prompt ``count`` times."""
        return [Prompt(STAND_IN)] * count


class FakeImages:
    """A recipe's data with fake images of the model's own size in place of its own."""

    def __init__(self, data: Data, pixels: tuple[int, ...], runtime: FakeRuntime) -> None:
        self._data, self._pixels, self._runtime = data, pixels, runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def batch(self, count: int, iteration: int, seed: int) -> CaptionedImages:
        """FakeRuntime images ``[count, 3, h, w]`` with captions."""
        images = self._runtime.blank((count, *self._pixels))
        return CaptionedImages(self._data.prompts(count, iteration, seed), images.__getitem__)


def with_stand_in_rewards(recipe: Recipe, *, call: bool) -> Recipe:
    """The recipe with meaningless scores; with ``call`` its rewards are computed all the same."""
    if isinstance(recipe, SftRecipe):
        return recipe
    rewards = {
        name: dataclasses.replace(
            item, reward=StandInReward(getattr(item.reward, "needs_reference", False), item.reward if call else None)
        )
        for name, item in recipe.rewards.items()
    }
    return dataclasses.replace(recipe, rewards=rewards)


@dataclass
class TraceCache:
    """The traces of models for later rehearsals; how work is split into batches changes no trace."""

    traces: dict[str, Traces] = field(default_factory=dict)

    def of(self, model: Any, runtime: FakeRuntime) -> Traces:
        """The traces of a model on a runtime."""
        parts = {name: 1 for name in ("batch", "vae_batch") if hasattr(model, name)}
        key = f"{dataclasses.replace(model, **parts)} {runtime}"
        return self.traces.setdefault(key, {})


def rehearse(recipe: Recipe, runtime: FakeRuntime, cache: TraceCache) -> Memory:
    """Run the recipe's own loop on tensors without storage, and return the memory that it would take.

    Raises:
        ConfigError, CheckpointError: the model's settings are missing, damaged or incompatible.
    """
    with Ledger() as ledger, explained(ledger.phase_history), emulate_device(runtime.target), _fake_noise(runtime):
        policy = recipe.model.load(runtime)
        _instrument(policy, runtime, ledger, cache.of(recipe.model, runtime))
        with torch.no_grad():
            pixels = policy.decode(runtime.blank((1, *recipe.model.sample_shape))).shape[1:]
        ledger.peaks.clear()
        source: Any = StandInData(recipe.data) if getattr(recipe.data, "missing", "") else recipe.data
        if source is recipe.data:
            source.prepare(lambda _: None)
        data: Any = FakeImages(source, tuple(pixels), runtime)
        recipe = _shortened(recipe)
        recipe = dataclasses.replace(with_stand_in_rewards(recipe, call=False), data=data)
        loop = Rehearsal(recipe, policy, ledger)
        sft(recipe, loop) if isinstance(recipe, SftRecipe) else train(recipe, loop)
        return _memory(policy, loop, ledger)


@contextmanager
def _fake_noise(runtime: FakeRuntime) -> Iterator[None]:
    """Inside the block, supervised losses draw fake noise, whatever the size of their batch."""
    names: dict[str, Any] = vars(objectives)
    draw, names["noise"] = names["noise"], lambda _, rows, shape: runtime.blank((len(rows), *shape))
    try:
        yield
    finally:
        names["noise"] = draw


def _shortened(recipe: Recipe) -> Recipe:
    """The recipe without repetitions that raise no peak: steps of an evaluation and draws of a forward objective."""
    evaluate = dataclasses.replace(recipe.evaluate, steps=min(recipe.evaluate.steps, 2))
    deploy = recipe.deploy and dataclasses.replace(recipe.deploy, steps=min(recipe.deploy.steps, 2))
    objective: Any = recipe.objective
    if isinstance(objective, ForwardObjective):
        objective = dataclasses.replace(objective, draws=min(objective.draws, 2))
    return dataclasses.replace(recipe, evaluate=evaluate, deploy=deploy, objective=objective)


def _instrument(policy: Any, runtime: FakeRuntime, ledger: Ledger, traces: Traces) -> None:
    """Record encoding and decoding as separate phases, and replay the networks after the first call of each shape."""
    shape, predict = policy.spec.sample_shape, policy.predict
    policy.noise = lambda _, rows: runtime.blank((len(rows), *shape))
    for name in ("encode", "encode_images", "decode"):
        phase = "decode" if name == "decode" else "encode"
        setattr(policy, name, in_phase(getattr(policy, name), partial(ledger.phase, phase)))
    replay = Replay(policy.parameters(), runtime, ledger, traces)
    policy.predict = lambda x, here, cond, weights="current": replay.predict(
        (x, cond, policy.spec.batch, weights), partial(predict, x, here, cond, weights)
    )
    if isinstance(policy, ScenePolicy):
        clean = policy._clean
        policy._clean = lambda x, level, cond: replay.run(  # type: ignore[method-assign]
            "call", (x, cond.tokens.shape), lambda: clean(x, level, cond)
        )
    else:
        policy.family = ReplayedFamily(policy.family, replay)
        embeddings: dict[Any, Any] = {}  # by length in tokens, on which alone their shapes depend
        policy._embed = lambda texts: [_embedding(policy, text, embeddings) for text in texts]


def _embedding(policy: Any, text: str, embeddings: dict[Any, Any]) -> Any:
    """The embedding of a caption, or an earlier one of as many tokens if the family has a tokenizer to count them."""
    room = policy.family.room(policy.pipe, policy.spec.tokens)
    key = len(room[0](text, add_special_tokens=False, verbose=False).input_ids) if room else text
    if key not in embeddings:
        embeddings[key] = next(iter(policy._encode_each([text])))
    return embeddings[key]


def in_phase(work: Callable[..., Any], phase: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    """Wrap ``work`` so that it runs inside a phase."""

    @wraps(work)
    def inside(*args: Any) -> Any:
        with phase():
            return work(*args)

    return inside


def _modules(policy: Any) -> Iterator[nn.Module]:
    """The modules of a pipeline, or the network of another policy."""
    pipe = getattr(policy, "pipe", None)
    parts = pipe.components.values() if pipe else [policy.weights.module]
    return (part for part in parts if isinstance(part, nn.Module))


def _memory(policy: Model, loop: Rehearsal, ledger: Ledger) -> Memory:
    network = [t for module in _modules(policy) for t in (*module.parameters(), *module.buffers())]
    states = [t for optimizer in loop.optimizers for state in optimizer.state.values() for t in state.values()]
    copies = [t for tensors in policy.weights.copies.values() for t in tensors.values()]
    every = {id(p): p.numel() for module in _modules(policy) for p in module.parameters()}
    files = {
        name: sum(t.numel() * t.element_size() for t in tensors.values()) for name, (tensors, _) in loop.files().items()
    }
    weights, copied = size(network), size(copies)
    peaks = {"load": weights + copied} | ledger.peaks
    return Memory(
        {name: peaks[name] for name in PHASES if name in peaks},
        weights,
        copied,
        size(t for t in states if isinstance(t, Tensor)),
        files,
        sum(every.values()),
        sum(p.numel() for p in policy.parameters()),
        size(policy.weights.module.parameters()),
        *_block_sizes(policy.weights.module),
    )


def _block_sizes(network: nn.Module) -> tuple[int, int]:
    """The bytes of a network's largest block, which processes gather at once, and of what no block has."""
    remaining, sizes = {id(p): p for p in network.parameters()}, list[int]()
    for block in repeated_blocks(network):
        sizes.append(size([remaining.pop(id(p)) for p in block.parameters() if id(p) in remaining]))
    return max(sizes, default=0), size(remaining.values())
