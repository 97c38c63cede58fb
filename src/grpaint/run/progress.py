"""The progress bar of a run, or plain lines if the output is no terminal."""

import time
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from grpaint.core.text import printable
from grpaint.measures.hacking import alarm_text
from grpaint.measures.score import deciding_line, score_name, score_text, score_unit
from grpaint.recipe.settings import Optimisation
from grpaint.report.console import Terminal


def _score(line: dict[str, Any]) -> str:
    """The score of an evaluation with its name, unless that is the built-in model's."""
    name = score_name(line)
    return f"{'' if name == 'strict' else name + ' '}{score_text(name, line[name])}{score_unit(name)}"


class Progress:
    """Shows rewards, the held-out score and the time left."""

    def __init__(self, console: Terminal, train: Optimisation) -> None:
        self.console, self.train = console, train
        self.total = None if train.evaluations else train.iterations  # known after the first iteration
        self.reward, self.score = "", ""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("starting", total=self.total)
        self.start = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def log(self, text: str) -> None:
        """Print a line above the bar; where there is no terminal, whole, however long it is."""
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    def update(self, iteration: int, line: dict[str, Any]) -> None:
        """Show the numbers of a line of metrics.jsonl or evaluations.jsonl."""
        if "prompts" in line:  # an evaluation
            deployed = f", as deployed {_score(deciding_line(line))}" if "deploy" in line else ""
            self.score = f"held-out {_score(line)}{deployed}"
            if "hacking" in line:
                self.log(f"iteration {iteration}: reward hacking? {alarm_text(line['hacking'])}")
            if not self.console.is_terminal:
                total = f"/{self.total}" if self.total else ""
                self.log(f"{iteration:6d}{total}  {self.reward}  {self.score}  {time.monotonic() - self.start:.0f} s")
        else:
            self.total = self.train.total(iteration, line["cost/model_evaluations"])
            rewards = [
                f"{name[7:]} {value:.3f}"
                for name, value in line.items()
                if name.startswith("reward/") and name.count("/") == 1
            ]
            self.reward = "  ".join(rewards) or f"loss {line.get('sft/denoising', float('nan')):.4f}"
        self.bar.update(
            self.task,
            completed=iteration,
            total=self.total,
            description=printable(f"{self.reward}  {self.score}".strip()),
        )
