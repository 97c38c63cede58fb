"""Rewards in other processes: connect them for the length of a run, and score with them concurrently."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import ExternalReward, Prompt, Reward
from grpaint.core.user_code import user_code
from grpaint.parallel.background import BackgroundCall


@contextmanager
def connect_rewards(rewards: Mapping[str, Reward], log: Callable[[str], None]) -> Iterator[None]:
    """Start every external reward, and stop it on leaving the ``with`` block, also after an error.

    Raises:
        RewardError: if a reward does not start; the message names it.
    """
    with ExitStack() as stack:
        for name, reward in rewards.items():
            if isinstance(reward, ExternalReward):
                stack.callback(_stop, name, reward, log)
                with user_code(f"reward {name}", RewardError):
                    notes = [f"reward {name}: {note}" for note in reward.start()]
                for note in notes:
                    log(note)
        yield


def _stop(name: str, reward: ExternalReward, log: Callable[[str], None]) -> None:
    """Stop a reward; an error is told and not raised, since what comes before it says how the run ended."""
    try:
        with user_code(f"reward {name}", RewardError):
            reward.stop()
    except RewardError as error:
        log(f"{error} (while it stopped)")


def score_all(
    rewards: Mapping[str, Reward],
    score: Callable[[str, Reward, Tensor, Sequence[Prompt]], Tensor],
    images: Tensor,
    prompts: Sequence[Prompt],
) -> dict[str, Tensor]:
    """Score images with every reward: external ones concurrently, while the others run one after the other.

    ``score(name, reward, images, prompts)`` computes one column. If external rewards raise, the first error in the
    order of ``rewards`` is raised, after all calls have ended.
    """
    calls = {name: partial(score, name, reward, images, prompts) for name, reward in rewards.items()}
    external = {
        name: BackgroundCall(calls[name]) for name, reward in rewards.items() if isinstance(reward, ExternalReward)
    }
    try:
        local = {name: call() for name, call in calls.items() if name not in external}
    finally:
        errors = [error for call in external.values() if (error := call.error()) is not None]
    if errors:
        raise errors[0]
    return {name: external[name].result() if name in external else local[name] for name in rewards}
