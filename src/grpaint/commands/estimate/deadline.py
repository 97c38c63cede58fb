"""The time that a plan may take: when it is over, the plan ends and says what it was counting."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from grpaint.core.errors import ConfigError

FEWER = {  # what makes a phase of the rehearsal shorter
    "encode": "train.prompts, train.batch or evaluate.prompts",
    "rollout": "train.prompts, train.group_size or plan.steps, or raise model.batch",
    "decode": "train.prompts, train.group_size or evaluate.prompts, or raise model.vae_batch",
    "reward": "train.prompts or train.group_size",
    "update": "train.prompts or train.group_size, or raise objective.minibatch",
    "evaluate": "evaluate.prompts, or raise model.batch",
}


class TimeOver(ConfigError):
    """A plan was not ready in time; ``explained``: the message says what it was doing."""

    explained = False


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """End the block after so many minutes.

    The signal is repeated, since an exception in a destructor is lost. Only the main thread can be interrupted;
    elsewhere the block takes what it takes.

    Raises:
        TimeOver: the time is over.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeOver(f"plan: no answer within --minutes {minutes:g}.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def explained(phase_history: list[str]) -> Iterator[None]:
    """If the time is over in the block, name what was being counted: the last of ``phase_history``.

    An explanation from a block inside this one stays as it is.
    """
    try:
        yield
    except TimeOver as error:
        if error.explained:
            raise
        phase = phase_history[-1] if phase_history else ""
        counted = f"counting {phase}" if phase else "reading the data and the model's settings"
        hint = f"Lower {FEWER[phase]}; or give it" if phase in FEWER else "Give it"
        over = TimeOver(f"{str(error)[:-1]}: it was still {counted}. {hint} longer with --minutes.")
        over.explained = True
        raise over from None
