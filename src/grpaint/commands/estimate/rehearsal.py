"""A recipe's own loop, run through twice on hollow networks: what it holds, when, and how much of it."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpaint.backends.fake import FakeRuntime, emulate_device
from grpaint.backends.scenes import ScenePolicy
from grpaint.commands.estimate.ledger import Ledger, size
from grpaint.commands.estimate.replay import Recall, RecalledFamily, Traces
from grpaint.core.policy import Prompt
from grpaint.judge import sample
from grpaint.learn.objective import Term
from grpaint.loops import sft, train
from grpaint.recipe.config import Recipe, SftRecipe
from grpaint.recipe.pieces import Data, Model
from grpaint.rollout.rollout import Rollout
from grpaint.run.folder import RunFolder
from grpaint.run.loop import Line, Loop
from grpaint.run.signals import Listener

PHASES = ("load", "encode", "rollout", "decode", "reward", "update", "evaluate")


@dataclass(frozen=True)
class Memory:
    """Bytes: ``peaks`` by phase, and what stays through all of them."""

    peaks: dict[str, int]
    weights: int
    copies: int
    optimizer: int
    checkpoint: dict[str, int]
    parameters: int
    trainable: int


class Unwritten(Loop):
    """A loop that writes nothing and goes through ``turns`` iterations."""

    turns = 2

    def __init__(self, recipe: Recipe, policy: Model) -> None:
        super().__init__(recipe, policy, RunFolder(Path()), lambda _: {}, Listener())

    def iterations(self) -> Iterator[int]:
        for number in range(self.turns):
            self.done = number
            yield number

    def record(self, numbers: Line) -> None:
        """Nobody reads them."""


class Rehearsal(Unwritten):
    """The loop of a hollow model: no decision on a gradient's value, and the held-out prompts between iterations."""

    def __init__(self, recipe: Recipe, policy: Model, ledger: Ledger) -> None:
        super().__init__(recipe, policy)
        self.ledger, self.scaler = ledger, torch.amp.GradScaler("cpu", enabled=False)  # it reads values

    def iterations(self) -> Iterator[int]:
        for number in super().iterations():
            yield number
            if number == 0:
                settings = self.recipe.evaluate
                prompts = self.recipe.data.held_out(settings.prompts, settings.seed)
                with self.phase("evaluate"):
                    sample(self.policy, prompts, settings)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with self.ledger.phase(name):
            yield

    def update(self, terms: Callable[[], Iterable[Term]], batch: Rollout) -> dict[str, float]:
        if self.backward(terms()):
            self.clip()
            self.step()
        return {}


@dataclass(frozen=True)
class Stand:
    """In a reward's place: scores that differ within every group, after ``asked`` was asked, where there is one."""

    needs_reference: bool
    asked: Callable[[Tensor, Sequence[Prompt]], Any] | None = None

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if self.asked:
            self.asked(images, prompts)
        return torch.arange(len(prompts)) * 0.618 % 1


class Blank:
    """A recipe's captions with hollow images of the model's own size."""

    def __init__(self, data: Data, pixels: tuple[int, ...], runtime: FakeRuntime) -> None:
        self._data, self._pixels, self._runtime = data, pixels, runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def batch(self, count: int, iteration: int, seed: int) -> tuple[Tensor, list[Prompt]]:
        """Captioned images."""
        return self._runtime.blank((count, *self._pixels)), self._data.prompts(count, iteration, seed)


def unrewarded(recipe: Recipe, *, ask: bool) -> Recipe:
    """The recipe with scores of no meaning; ``ask``: its rewards are asked all the same."""
    if isinstance(recipe, SftRecipe):
        return recipe
    rewards = {
        name: dataclasses.replace(
            item, reward=Stand(getattr(item.reward, "needs_reference", False), item.reward if ask else None)
        )
        for name, item in recipe.rewards.items()
    }
    return dataclasses.replace(recipe, rewards=rewards)


@dataclass
class Known:
    """What rehearsals have learned of models, for those that come after: how work is split changes no trace."""

    traces: dict[str, Traces] = field(default_factory=dict)

    def of(self, model: Any, runtime: FakeRuntime) -> Traces:
        """The traces of a model."""
        parts = {name: 1 for name in ("batch", "vae_batch") if hasattr(model, name)}
        key = f"{dataclasses.replace(model, **parts)} {runtime}"
        return self.traces.setdefault(key, {})


def rehearse(recipe: Recipe, runtime: FakeRuntime, known: Known) -> Memory:
    """Run the recipe's own loop without contents.

    Raises:
        ConfigError, CheckpointError: where the model's settings are missing, damaged or do not go together.
    """
    with Ledger() as ledger, emulate_device(runtime.target):
        policy = recipe.model.load(runtime)
        _follow(policy, runtime, ledger, known.of(recipe.model, runtime))
        with torch.no_grad():
            pixels = policy.decode(runtime.blank((1, *recipe.model.sample_shape))).shape[1:]
        ledger.peaks.clear()
        data: Any = Blank(recipe.data, tuple(pixels), runtime)
        recipe.data.prepare(lambda _: None)
        recipe = dataclasses.replace(unrewarded(recipe, ask=False), data=data)
        loop = Rehearsal(recipe, policy, ledger)
        sft(recipe, loop) if isinstance(recipe, SftRecipe) else train(recipe, loop)
        return _memory(policy, loop, ledger)


def _follow(policy: Any, runtime: FakeRuntime, ledger: Ledger, traces: Traces) -> None:
    """Give the parts of a policy's work phases of their own, and run a pipeline's networks once for each shape."""
    shape = policy.spec.sample_shape
    policy.noise = lambda _, rows: runtime.blank((len(rows), *shape))
    for name in ("encode", "encode_images", "decode"):
        phase = "decode" if name == "decode" else "encode"
        setattr(policy, name, booked(getattr(policy, name), partial(ledger.phase, phase)))
    recall = Recall(policy.parameters(), runtime, ledger, traces)
    if isinstance(policy, ScenePolicy):
        clean = policy._clean
        policy._clean = lambda x, level, cond: recall.run(  # type: ignore[method-assign]
            "call", (x, cond.tokens.shape), lambda: clean(x, level, cond)
        )
    else:
        policy.family = RecalledFamily(policy.family, recall)
        made: dict[Any, Any] = {}  # embeddings: one for every length in tokens, which is all that shapes go by
        policy._embed = lambda texts: [_embedding(policy, text, made) for text in texts]


def _embedding(policy: Any, text: str, made: dict[Any, Any]) -> Any:
    found = policy.family.room(policy.pipe, policy.spec.tokens)
    key = len(found[0](text, add_special_tokens=False, verbose=False).input_ids) if found else text
    if key not in made:
        made[key] = next(iter(policy._encode_each([text])))
    return made[key]


def booked(work: Callable[..., Any], phase: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    """``work``, charged to a phase of its own."""

    @wraps(work)
    def inside(*args: Any) -> Any:
        with phase():
            return work(*args)

    return inside


def _modules(policy: Any) -> Iterator[nn.Module]:
    pipe = getattr(policy, "pipe", None)
    parts = pipe.components.values() if pipe else [policy.weights.module]
    return (part for part in parts if isinstance(part, nn.Module))


def _memory(policy: Model, loop: Rehearsal, ledger: Ledger) -> Memory:
    tensors = [t for module in _modules(policy) for t in (*module.parameters(), *module.buffers())]
    states = [t for optimizer in loop.optimizers for state in optimizer.state.values() for t in state.values()]
    copies = [t for kept in policy.weights.copies.values() for t in kept.values()]
    every = {id(p): p.numel() for module in _modules(policy) for p in module.parameters()}
    files = {name: sum(t.numel() * t.element_size() for t in kept.values()) for name, (kept, _) in loop.files().items()}
    weights, kept_copies = size(tensors), size(copies)
    peaks = {"load": weights + kept_copies} | ledger.peaks
    return Memory(
        {name: peaks[name] for name in PHASES if name in peaks},
        weights,
        kept_copies,
        size(t for t in states if isinstance(t, Tensor)),
        files,
        sum(every.values()),
        sum(p.numel() for p in policy.parameters()),
    )
