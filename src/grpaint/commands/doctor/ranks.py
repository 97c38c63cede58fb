"""Checks that many processes give the numbers of one, with this recipe, model and machine: ``doctor --processes``.

The first process trains one iteration alone, then all train it together; the checks compare the two.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpaint.commands.doctor.examination import Examination, Finding
from grpaint.learn.advantage import Advantage
from grpaint.learn.external_rewards import connect_rewards
from grpaint.learn.objective import Term
from grpaint.learn.table import RewardTable
from grpaint.loops import train
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import TrainRecipe
from grpaint.recipe.pieces import Model, stateful
from grpaint.rollout.rollout import Rollout
from grpaint.run.shares import check_shares
from grpaint.run.unsaved import UnsavedLoop
from grpaint.run.updates import Terms
from grpaint.storage.files import tensors_digest

LARGEST = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05}  # relative differences that rounding may make, by precision
WEIGHTS, PROMPTS, LATENTS, SCORES, GRADIENTS, STEP = (
    "every rank has the same weights",
    "every rank has the same prompts",
    "the images of many processes are those of one",
    "the scores of many processes are those of one",
    "the gradient of many processes is that of one",
    "every rank takes the same step",
)
OTHER_WEIGHTS = "weights are drawn at random while they load, without a seed, or machines see other files"
OTHER_PROMPTS = (
    "prompts depend on the machine or on the process: its files, their order, or a random state of their own"
)
OTHER_LATENTS = (
    "noise depends on the place of a row and not on its number (policy.noise gets the numbers), rows of a batch see "
    "each other, or a choice between samples fell on the edge of what rounds"
)
OTHER_SCORES = (
    "a reward compares the images of a call with each other, or keeps state: give it needs_group, or one seed"
)
OTHER_GRADIENT = (
    "the objective divides by the rows that it has here; divide by rollout.total, or by rollout.actions, and key noise "
    "and times by rollout.numbers"
)
OTHER_STEP = "the optimizer or the objective has a random state of its own, or a device computes wrongly"


@dataclass(frozen=True)
class Iteration:
    """What one iteration computed: ``latents`` and ``scores`` in the order of rows, and the first update's gradient.

    ``weights`` is a digest of the trained weights after it.
    """

    latents: Tensor
    scores: dict[str, Tensor]
    gradient: dict[str, Tensor]
    weights: str


class _Recorder:
    """An advantage that keeps the table of scores from which it was computed."""

    def __init__(self, advantage: Advantage) -> None:
        self._advantage, self.table = advantage, RewardTable({})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._advantage, name)

    def __call__(self, table: RewardTable, rollout: Rollout) -> Tensor:
        self.table = table
        return self._advantage(table, rollout)


class _RecordedLoop(UnsavedLoop):
    """A loop of one iteration that keeps its rows, and the gradient of its first update before it is clipped."""

    turns = 1

    def __init__(self, recipe: TrainRecipe, policy: Model, world: World) -> None:
        super().__init__(recipe, policy, world)
        self.parts: list[dict[str, Tensor]] = []
        self.gradient: dict[str, Tensor] = {}

    def update(
        self, terms: Terms, batch: Rollout, advantage: Tensor, anchor: Callable[[], Iterable[Term]] = tuple
    ) -> dict[str, float]:
        self.parts.append({"numbers": batch.numbers, "latents": batch.x0.float().cpu()})
        return super().update(terms, batch, advantage, anchor)

    def clip(self) -> Tensor:
        trainable = self.policy.weights.trainable
        self.gradient = self.gradient or {
            name: parameter.grad.float().cpu().clone()
            for name, parameter in trainable.items()
            if parameter.grad is not None
        }
        return super().clip()


def train_once(recipe: TrainRecipe, case: Examination, world: World) -> Iteration:
    """Train one iteration; the state of the recipe and the weights are restored."""
    states = {name: copy.deepcopy(piece.state_dict()) for name, piece in stateful(recipe).items()}
    recorder = _Recorder(recipe.advantage)
    with case.restored():
        loop = _RecordedLoop(dataclasses.replace(recipe, advantage=recorder), case.policy, world)
        train(loop.recipe, loop)  # type: ignore[arg-type]  # reason: it is the recipe above
        weights = tensors_digest(case.policy.weights.trainable)
    for name, piece in stateful(recipe).items():
        piece.load_state_dict(states[name])
    rows = world.gather({name: torch.cat([part[name] for part in loop.parts]) for name in loop.parts[0]})
    order = rows["numbers"].argsort()
    return Iteration(rows["latents"][order], dict(recorder.table.columns), loop.gradient, weights)


def examine_ranks(case: Examination, world: World) -> Iterator[Finding]:
    """Train one iteration in one process and in all of them, and yield the findings, on every rank.

    There is one more prompt than ranks, so that they have unequal shares.

    Raises:
        ConfigError: so many ranks cannot divide this recipe.
    """
    recipe = case.recipe
    if not isinstance(recipe, TrainRecipe):
        yield Finding(LATENTS, None, "the rewards of this recipe are not trusted", "--trust lets them run")
        return
    count = world.size + 1
    training = dataclasses.replace(recipe.train, prompts=count, parts=min(recipe.train.parts, count))
    recipe = dataclasses.replace(recipe, train=training)
    check_shares(recipe, world)
    weights = case.policy.weights
    held = weights.trainable if world.divides else weights.module.state_dict()  # of the others a rank has a share
    yield _agreement(WEIGHTS, tensors_digest(held), world, OTHER_WEIGHTS)
    prompts = [prompt.text for prompt in recipe.data.prompts(count, 0, recipe.train.seed)]
    yield _agreement(PROMPTS, prompts, world, OTHER_PROMPTS)
    world.phase = "doctor"
    rewards = recipe.reward_set().rewards
    with connect_rewards(rewards, lambda _: None):
        one = train_once(recipe, case, ONE) if world.first else None
        world.from_first(None)  # the others wait here, under their own phase
        many = train_once(recipe, case, world)
    yield from _comparison(one or many, many, LARGEST[case.runtime.precision])
    yield _agreement(STEP, many.weights, world, OTHER_STEP)


def _agreement(check: str, value: Any, world: World, fix: str) -> Finding:
    """Compare a value of every rank with rank 0's."""
    values = world.gather_values(value)
    others = [str(rank) for rank, other in enumerate(values) if other != values[0]]
    return Finding(check, not others, f"rank {', '.join(others)} differs" if others else f"{world.size} ranks", fix)


def _comparison(one: Iteration, many: Iteration, largest: float) -> Iterator[Finding]:
    """Compare what one process computed with what many did."""
    if one.latents.shape != many.latents.shape:
        rows = f"{len(one.latents)} samples in one process, {len(many.latents)} in many"
        yield Finding(LATENTS, False, rows, OTHER_LATENTS)
        return
    yield _closeness(LATENTS, {"images": one.latents}, {"images": many.latents}, largest, OTHER_LATENTS)
    yield _closeness(SCORES, one.scores, many.scores, largest, OTHER_SCORES)
    if not (one.gradient or many.gradient):
        yield Finding(GRADIENTS, None, "no group had a spread of scores, so there was nothing to learn from")
        return
    yield _closeness(GRADIENTS, one.gradient, many.gradient, largest, OTHER_GRADIENT)


def _closeness(check: str, one: dict[str, Tensor], many: dict[str, Tensor], largest: float, fix: str) -> Finding:
    """Compare tensors of the same names by the size of their difference; the evidence names the worst one."""
    zero = torch.zeros(())
    names = list(dict.fromkeys([*one, *many]))
    squares = {name: (one.get(name, zero) - many.get(name, zero)).double().square().sum().item() for name in names}
    size = sum(tensor.double().square().sum().item() for tensor in one.values()) or 1.0
    difference, worst = (sum(squares.values()) / size) ** 0.5, max(squares, key=squares.__getitem__)
    if not difference:
        return Finding(check, True, "equal to the last bit")
    return Finding(check, difference <= largest, f"{difference:.1e} of their size, most of it in {worst}", fix)
