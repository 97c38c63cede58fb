"""A loop without a run folder, for commands that train a little to measure or to check."""

from collections.abc import Iterator
from pathlib import Path

from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import Recipe
from grpaint.recipe.pieces import Model
from grpaint.run.folder import RunFolder
from grpaint.run.loop import Loop
from grpaint.run.pictures import Drawing
from grpaint.run.signals import Listener
from grpaint.run.updates import Line


class _NoJudge:
    """Stands where a run judges its model, which a loop of this kind never does."""

    def evaluate(self, iteration: int) -> tuple[Line, Drawing]:
        raise NotImplementedError

    def draw(self) -> Drawing:
        raise NotImplementedError


class UnsavedLoop(Loop):
    """A loop that writes nothing and ends after ``turns`` iterations."""

    turns = 2

    def __init__(self, recipe: Recipe, policy: Model, world: World = ONE) -> None:
        super().__init__(recipe, policy, RunFolder(Path()), _NoJudge(), Listener(), world)

    def iterations(self) -> Iterator[int]:
        for number in range(self.turns):
            self.done = number
            yield number

    @property
    def drawing_follows(self) -> bool:
        return False

    def record(self, numbers: Line) -> None:
        """Drop the metrics."""
