"""A loop without a run folder, for commands that train a little to measure or to check."""

from collections.abc import Iterator
from pathlib import Path

from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import Recipe
from grpaint.recipe.pieces import Model
from grpaint.run.folder import RunFolder
from grpaint.run.loop import Loop
from grpaint.run.signals import Listener
from grpaint.run.updates import Line


class UnsavedLoop(Loop):
    """A loop that writes nothing and ends after ``turns`` iterations."""

    turns = 2

    def __init__(self, recipe: Recipe, policy: Model, world: World = ONE) -> None:
        super().__init__(recipe, policy, RunFolder(Path()), lambda _: {}, Listener(), world)

    def iterations(self) -> Iterator[int]:
        for number in range(self.turns):
            self.done = number
            yield number

    def record(self, numbers: Line) -> None:
        """Drop the metrics."""
