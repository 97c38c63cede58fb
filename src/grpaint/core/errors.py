"""Every error that grpaint raises on purpose.

GrpaintError                 one line for the terminal, never a traceback
|-- ConfigError              a setting or an argument is wrong           (exit code 2)
|   `-- MissingExtra         an optional package is not installed
|-- CheckpointError          a weight file cannot be read or written     (2 when reading, 1 while running)
`-- RunError                 a run that had started cannot go on         (exit code 1; resumable)
    |-- RewardError          a reward raised, or returned what no reward may return
    `-- MemoryExhausted      out of memory, with the phase and what to lower
"""


class GrpaintError(Exception):
    """What went wrong, why, and the way out, in one line."""


class ConfigError(GrpaintError):
    """A setting, recipe, argument or combination of pieces is refused before anything starts."""


class MissingExtra(ConfigError):
    """An optional package is not installed; the message says which line to type."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package: pip install 'grpaint[{extra}]'")


class CheckpointError(GrpaintError):
    """A file of weights is missing, cut short, not what its name says, or could not be written."""


class RunError(GrpaintError):
    """A run that had started cannot go on; the last checkpoint stays and the run can be resumed."""


class RewardError(RunError):
    """A reward raised, or returned NaN, infinity or the wrong number of scores."""


class MemoryExhausted(RunError):
    """Out of memory; the message names the phase and what to lower."""

    def __init__(self, phase: str, lower: str) -> None:
        super().__init__(f"out of memory in {phase}: lower {lower}. The run can be resumed.")
        self.phase = phase
