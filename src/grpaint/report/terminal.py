"""Tables for the terminal: before and after training, one evaluation, and a recipe in full."""

from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w
from rich import box
from rich.table import Table

from grpaint.measures.hacking import alarm_text
from grpaint.measures.score import score_name, score_text, score_unit
from grpaint.report.console import Terminal


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _score(line: dict[str, Any]) -> str:
    name = score_name(line)
    if f"{name}_interval" not in line:  # a denoising loss has none
        return score_text(name, line[name])
    low, high = line[f"{name}_interval"]
    return f"{score_text(name, line[name])}{score_unit(name)} [{score_text(name, low)}, {score_text(name, high)}]"


def _columns(line: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Map the headings beside the score to (measure, format): those of the embedded world, or else of the rewards."""
    if "background" in line:
        return {"soft": ("soft", ".3f"), "background": ("background", ".4f"), "patch": ("patch_energy", ".1e")}
    rewards = [name for name, value in line.items() if name.startswith("reward/") and isinstance(value, float)]
    return {name.removeprefix("reward/"): (name, ".4g") for name in rewards}


def _measures(line: dict[str, Any], columns: dict[str, tuple[str, str]]) -> list[str]:
    return [f"{line[name]:{form}}" if name in line else "-" for name, form in columns.values()]


def _row(title: str, line: dict[str, Any], columns: dict[str, tuple[str, str]]) -> list[str]:
    return [title, _score(line), *_measures(line, columns)]


def _change(first: dict[str, Any], last: dict[str, Any], name: str) -> str:
    """A change as text: the difference of a score, the ratio of any other measure."""
    before, after = first.get(name), last.get(name)
    if name == "soft" or name.startswith("reward/"):
        return f"{after - before:+.3f}" if before is not None and after is not None else "-"
    return f"x {after / before:.2f}" if before and after is not None else "-"


def _sampling(line: dict[str, Any]) -> str:
    """How the samples of an evaluation were drawn; of a deployed model also with which frozen adapters."""
    guidance = "no guidance" if line["guidance"] == 1 else f"guidance {line['guidance']:g}"
    text = f"{line['steps']}-step {line['sampler']['kind']}, {guidance}"
    if "order" not in line:
        return text
    order = f" of order {line['order']:g}" if line["order"] != 1 else ""
    frozen = f", frozen {', '.join(line['frozen'])}" if line["frozen"] else ""
    return f"as deployed: {text}{order}{frozen}"


def before_after_table(
    first: dict[str, Any], last: dict[str, Any], difference: tuple[float, list[float]] | None
) -> Table:
    """Tabulate the evaluations before and after training, with 95% intervals, and the base at its best guidance.

    ``difference``: the score's mean paired difference and its interval; None if it has no values by prompt.
    """
    name, columns = score_name(last), _columns(last)
    if name != "denoising_loss" and "denoising_loss" in last:
        columns |= {"denoising": ("denoising_loss", ".4f")}
    how = _sampling(last) if "order" in last else f"{last['steps']}-step ODE"
    out = _table(f"Held-out prompts ({last['prompts']}), {how}, average weights")
    for heading in ("", f"{name} [95%]" if f"{name}_interval" in last else name, *columns):
        out.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    out.add_row(*_row("before", first, columns))
    guided = first.get("base_guided")
    if guided:
        out.add_row(*_row(f"at guidance {guided['guidance']:g}", guided, columns))
    out.add_row(*_row(f"after {last['iteration']}", last, columns), style="bold")
    out.add_section()
    change = ""
    if difference:
        mean, ends = difference
        low, high = (score_text(name, end, sign=True) for end in ends)
        change = f"{score_text(name, mean, sign=True)} [{low}, {high}]" if ends[0] < ends[1] else "no prompt changed"
    out.add_row("paired", change, *(_change(first, last, key) for key, _ in columns.values()))
    return out


def evaluation_table(line: dict[str, Any]) -> Table:
    """Tabulate one evaluation by category."""
    name, columns = score_name(line), _columns(line)
    out = _table(f"Held-out prompts ({line['prompts']}), {_sampling(line)}")
    for heading in ("", "prompts", name, *columns):
        out.add_column(heading, justify="right" if heading else "left")
    for kind, scores in line["by_kind"].items():
        score = f"{score_text(name, scores[name])}{score_unit(name)}" if name in scores else "-"
        out.add_row(kind, str(scores["prompts"]), score, *_measures(scores, columns))
    out.add_section()
    out.add_row("all", str(line["prompts"]), _score(line), *_measures(line, columns))
    out.caption = f"denoising loss {line['denoising_loss']:.4f}" if "denoising_loss" in line else None
    return out


def print_recipe(
    console: Terminal, name: str, settings: dict[str, Any], steps: Sequence[dict[str, Any]], costs: dict[str, Any]
) -> None:
    """Print a recipe's settings, the steps of its first iteration and its costs."""
    console.print(f"# {name}\n{tomli_w.dumps(settings)}")
    if steps:
        out = Table(title="Steps of the first iteration")
        for heading in ("step", "t", "sigma", "sigma'", "gain", "std", ""):
            out.add_column(heading, justify="right")
        for row in steps:
            numbers = (f"{row[key]:.4f}" for key in ("sigma", "sigma_next", "gain", "std"))
            out.add_row(str(row["step"]), f"{row['t']:.4g}", *numbers, "noisy, trained" if row["noisy"] else "")
        console.print(out)
    for key, value in costs.items():
        console.print(f"{key.replace('_', ' '):24}{value:>10}")


def print_processes(console: Terminal, division: Mapping[str, Any]) -> None:
    """Print the rows of each process, and the bytes of gradients that they sum in an update if these are known."""
    size = division.get("gradient_bytes")
    numbers = {
        "processes": division["count"],
        "rows of each process": " ".join(map(str, division["rows"])),
        "largest share / mean": f"{division['imbalance']:.2f}",
        "gradient bytes an update": "not known without the model's files" if size is None else f"{size:,}",
    }
    for key, value in numbers.items():
        console.print(f"{key:25}{value:>9}")


def hacking_line(facts: Mapping[str, Any]) -> str:
    """Describe a run's first alarm of reward hacking in one line; empty if there was none.

    ``facts`` is the content of the run's run.json.
    """
    alarm = facts.get("hacking")
    if not alarm:
        return ""
    return (
        f"reward hacking? from iteration {alarm['began']} (none at {alarm['clean']}): {alarm_text(alarm)}; best before "
        f"it: {alarm['best_before'] or 'the base'}"
    )
