"""Further checks of rewards: their self-tests, and a watch for rewards that give every image the same score."""

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt, Reward
from grpaint.core.reward import Pair, RewardBase
from grpaint.core.user_code import user_code
from grpaint.learn.table import RewardTable, score_images


def self_test(
    name: str, reward: Reward, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]
) -> tuple[Pair, Tensor] | None:
    """Score a reward's self-test pair, or ``images`` if it has none; its state is restored afterwards.

    Returns the pair and its two scores ``[2]``, or None if there is no pair.

    Raises:
        RewardError: if scoring fails as in :func:`score_images`, or the pair's scores are out of range or misordered.
    """
    with user_code(f"reward {name}", RewardError, " (before its self-test)"):
        pair = reward.pair() if isinstance(reward, RewardBase) else None
        state = copy.deepcopy(reward.state_dict()) if hasattr(reward, "state_dict") else None
    if pair is None:
        score_images(name, reward, images, prompts)
    else:
        pair_images = torch.stack([pair.better, pair.worse]).to(images.device)
        scores = score_images(name, reward, pair_images, [pair.prompt] * 2)
        _check_pair(name, pair, scores)
    if state is not None:
        with user_code(f"reward {name}", RewardError, " (after its self-test)"):
            reward.load_state_dict(state)  # type: ignore[attr-defined]  # a state_dict comes with it
    return (pair, scores) if pair else None


def _check_pair(name: str, pair: Pair, scores: Tensor) -> None:
    better, worse = scores.tolist()
    pair_scores = (
        f'reward {name}: of its self-test pair ("{pair.prompt.text}") the better image scored {better:.4g} and the '
        f"worse {worse:.4g}"
    )
    fix = (
        "Its weights, settings or preprocessing are probably wrong; if you know that they are right, set "
        f"rewards.{name}.self_test = false to skip the test."
    )
    if not all(pair.low <= score <= pair.high for score in (better, worse)):
        raise RewardError(f"{pair_scores}, outside {pair.low:g}..{pair.high:g}. {fix}")
    if not better > worse:
        raise RewardError(f"{pair_scores}, which is not lower. {fix}")


@dataclass
class ConstantWatch:
    """Raise if a reward gives every image the same score in ``limit`` consecutive iterations (0: never).

    A reward's highest possible score is exempt: the task is then solved.
    """

    limit: int
    _constant_iterations: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def observe(self, table: RewardTable, rewards: Mapping[str, Reward], prompts: Sequence[Prompt]) -> None:
        """Check an iteration's scores.

        Raises:
            RewardError: if a reward was constant too often; the message names it, its score and the first prompts.
        """
        for name, column in table.columns.items():
            scores = column[table.applies[name]] if name in table.applies else column
            if len(scores) < 2:
                continue
            low, best = scores.min().item(), getattr(rewards[name], "best", None)
            solved = best is not None and math.isclose(low, best, rel_tol=1e-5, abs_tol=1e-7)
            constant = low == scores.max().item() and not solved
            self._constant_iterations[name] = self._constant_iterations[name] + 1 if constant else 0
            if self.limit and self._constant_iterations[name] >= self.limit:
                first = ", ".join(f'"{prompt.text}"' for prompt in prompts[:3])
                raise RewardError(
                    f"reward {name} gave every image {low:g} in {self.limit} iterations in a row (first prompts: "
                    f"{first}). It is broken, does not suit these images, or no longer distinguishes them; fix it and "
                    "continue with --resume, or set train.constant = 0."
                )
