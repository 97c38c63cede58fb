"""What is asked of a reward besides one finite score an image: its self-test, and that it tells images apart."""

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
from grpaint.learn.table import RewardTable, ask


def self_test(
    name: str, reward: Reward, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]
) -> tuple[Pair, Tensor] | None:
    """Ask a reward about its own pair; one that has none, about ``images``. Counted nowhere: its state stays.

    Returns the pair and its two scores, where there is one.

    Raises:
        RewardError: where it fails as in :func:`ask`, or the pair has scores out of range or in the wrong order.
    """
    pair = _pair_of(name, reward)
    state = copy.deepcopy(reward.state_dict()) if hasattr(reward, "state_dict") else None
    if pair is None:
        ask(name, reward, images, prompts)
    else:
        there = torch.stack([pair.better, pair.worse]).to(images.device)
        scores = ask(name, reward, there, [pair.prompt] * 2)
        _judge(name, pair, scores)
    if state is not None:
        reward.load_state_dict(state)  # type: ignore[attr-defined]  # they come together
    return (pair, scores) if pair else None


def _pair_of(name: str, reward: Reward) -> Pair | None:
    try:
        return reward.pair() if isinstance(reward, RewardBase) else None
    except Exception as error:  # it may be a user's
        raise RewardError(f"reward {name}: its self-test pair raised {type(error).__name__}: {error}") from error


def _judge(name: str, pair: Pair, scores: Tensor) -> None:
    better, worse = scores.tolist()
    said = f'reward {name}: of its self-test pair ("{pair.prompt.text}") the better image scored {better:.4g} and the '
    way_out = (
        "Weights, settings or preprocessing are not what they should be; where you know better, "
        f"rewards.{name}.self_test = false leaves it out."
    )
    if not all(pair.low <= score <= pair.high for score in (better, worse)):
        raise RewardError(f"{said}worse {worse:.4g}, outside {pair.low:g}..{pair.high:g}. {way_out}")
    if not better > worse:
        raise RewardError(f"{said}worse {worse:.4g}, which is no less. {way_out}")


@dataclass
class ConstantWatch:
    """Iterations in a row in which a reward gave every image the same score; ``limit`` of them are too many (0: never).

    A score that nothing exceeds may stay: the task is then solved, or that part of it.
    """

    limit: int
    _seen: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def observe(self, table: RewardTable, rewards: Mapping[str, Reward], prompts: Sequence[Prompt]) -> None:
        """Look at an iteration's scores.

        Raises:
            RewardError: naming the reward, the score and the first prompts.
        """
        for name, column in table.columns.items():
            scores = column[table.applies[name]] if name in table.applies else column
            if len(scores) < 2:
                continue
            low, best = scores.min().item(), getattr(rewards[name], "best", None)
            solved = best is not None and math.isclose(low, best, rel_tol=1e-5, abs_tol=1e-7)
            self._seen[name] = self._seen[name] + 1 if low == scores.max().item() and not solved else 0
            if self.limit and self._seen[name] >= self.limit:
                first = ", ".join(f'"{prompt.text}"' for prompt in prompts[:3])
                raise RewardError(
                    f"reward {name} gave every image {low:g} in {self.limit} iterations in a row (first prompts: "
                    f"{first}). It is broken, cannot see what is drawn, or has nothing left to tell apart; mend it and "
                    "--resume, or set train.constant = 0."
                )
