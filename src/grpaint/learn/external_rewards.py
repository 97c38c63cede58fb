"""Rewards that live in other processes: started and stopped with a run, and asked side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Elsewhere, Prompt, Reward
from grpaint.parallel.background import BackgroundCall


@contextmanager
def running(rewards: Mapping[str, Reward], log: Callable[[str], None]) -> Iterator[None]:
    """Start what lives elsewhere, and stop it at the end, however that comes.

    Raises:
        RewardError: with the reward's name, where one does not start.
    """
    with ExitStack() as stack:
        for name, reward in rewards.items():
            if isinstance(reward, Elsewhere):
                stack.callback(reward.stop)
                try:
                    notes = reward.start()
                except RewardError as error:
                    raise RewardError(f"reward {name}: {error}") from error
                for note in notes:
                    log(f"reward {name}: {note}")
        yield


def columns(
    rewards: Mapping[str, Reward],
    ask: Callable[[str, Reward, Tensor, Sequence[Prompt]], Tensor],
    images: Tensor,
    prompts: Sequence[Prompt],
) -> dict[str, Tensor]:
    """What every reward says, those elsewhere all at once while the others are asked in turn.

    Of several errors the first one's by the order of ``rewards`` is raised, once nothing is under way any more.
    """
    asked = {name: partial(ask, name, reward, images, prompts) for name, reward in rewards.items()}
    away = {name: BackgroundCall(asked[name]) for name, reward in rewards.items() if isinstance(reward, Elsewhere)}
    try:
        here = {name: work() for name, work in asked.items() if name not in away}
    finally:
        errors = [error for later in away.values() if (error := later.error()) is not None]
    if errors:
        raise errors[0]
    return {name: away[name].result() if name in away else here[name] for name in rewards}
