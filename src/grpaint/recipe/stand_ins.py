"""What stands for a reward on the ranks that do not have it: those besides the first of a machine that shares it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from grpaint.core.bounds import Limit
from grpaint.core.errors import ConfigError, RewardError
from grpaint.core.policy import Prompt, Reward
from grpaint.core.user_code import user_code
from grpaint.recipe.build import Plain, dump
from grpaint.recipe.pieces import WeightedReward
from grpaint.recipe.recipe import Recipe, TrainRecipe


@dataclasses.dataclass(frozen=True)
class StandIn:
    """A reward that cannot score. It has the attributes of the real one that ranks decide by."""

    needs_reference: bool = False
    needs_group: bool = False
    partial: bool = False
    best: Limit | None = None
    image_size: tuple[int, ...] | None = None

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        raise RewardError("the first process of this machine has this reward, and it was called in another")


def stand_ins(recipe: Recipe) -> dict[str, Plain]:
    """Return the settings of a stand-in for each reward that the ranks of a machine share, by name."""
    rewards = recipe.rewards if isinstance(recipe, TrainRecipe) else {}
    return {name: _stand_in(name, item.reward) for name, item in rewards.items() if item.place == "node"}


def _stand_in(name: str, reward: Reward) -> Plain:
    with user_code(f"reward {name}", ConfigError):
        best, size = getattr(reward, "best", None), getattr(reward, "image_size", None)
        settings = dump(
            StandIn(
                bool(getattr(reward, "needs_reference", False)),
                bool(getattr(reward, "needs_group", False)),
                bool(getattr(reward, "partial", False)),
                None if best is None else float(best),
                tuple(size) if size else None,
            )
        )
    return {"kind": f"{__name__}:{StandIn.__name__}", **settings}


def with_stand_ins(settings: Mapping[str, Any], tables: Mapping[str, Plain]) -> Plain:
    """Return a recipe's table with stand-ins for the rewards that ``tables`` names; their common settings stay."""
    common = {field.name for field in dataclasses.fields(WeightedReward)} - {"reward"}
    rewards = {
        name: {key: value for key, value in settings["rewards"][name].items() if key in common}
        | {"self_test": False}
        | table
        for name, table in tables.items()
    }
    return dict(settings) | ({"rewards": settings["rewards"] | rewards} if rewards else {})
