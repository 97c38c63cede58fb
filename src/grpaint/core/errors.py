"""The exceptions that grpaint raises on purpose.

GrpaintError                 one line for the terminal, never a traceback
|-- ConfigError              a setting or an argument is wrong           (exit code 2)
|   `-- MissingExtra         an optional package is not installed
|-- CheckpointError          a weight file cannot be read or written     (2 when reading, 1 while running)
`-- RunError                 a run that had started cannot continue      (exit code 1; resumable)
    |-- RewardError          a reward raised, or returned invalid scores
    |-- RankLost             another process of the run died, or is late  (its own code, where it gave one)
    |-- StopRequested        a signal came while the run waited for people  (128 + the signal)
    |-- ProcessesEnded       one of a run's processes ended it            (that one's exit code)
    `-- MemoryExhausted      out of memory; names the phase and the setting to lower
"""

import signal


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch on the CPU, CUDA or cuBLAS means that there is no memory left."""
    signs = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    torch_says_so = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
    return isinstance(error, MemoryError) or torch_says_so  # torch.OutOfMemoryError is a RuntimeError


class GrpaintError(Exception):
    """Base class; the message says in one line what went wrong, why, and how to fix it."""


class ConfigError(GrpaintError):
    """A setting, recipe, argument or combination of pieces is invalid; raised before anything starts."""


class MissingExtra(ConfigError):
    """An optional package is not installed; the message contains the command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package: pip install 'grpaint[{extra}]'")


class CheckpointError(GrpaintError):
    """A weight file is missing, truncated, of another format than its suffix, or could not be written."""


class RunError(GrpaintError):
    """A run that had started cannot continue; the last checkpoint stays and the run can be resumed."""


class RankLost(RunError):
    """Another rank died, or is ``late``. A death is no error of the run: the processes may start again."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class StopRequested(RunError):
    """A signal asks the run to stop, and what is under way may take for ever; nothing of the iteration is saved."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} while it waited; what was saved before stays; continue with --resume.")
        self.exit_code = 128 + number


class ProcessesEnded(RunError):
    """One of a run's processes ended it; the message, none if another has given it, and the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RewardError(RunError):
    """A reward raised, or returned NaN, infinity or the wrong number of scores."""


class MemoryExhausted(RunError):
    """Out of memory; the message names the phase and the setting to lower."""

    def __init__(self, phase: str, lower: str) -> None:
        super().__init__(f"out of memory in {phase}: lower {lower}. The run can be resumed.")
        self.phase = phase
