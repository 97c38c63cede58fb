"""Kill a subject some times, let it end, and hold it against the one that nothing stopped."""

import dataclasses
import json
import random
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.processes import Child, fork
from chaos.subjects import Subject, free_port, serve
from grpaint.storage.lock import Lock
from tiny_runs import stored_state, timeless

SIGNALS = ("SIGKILL",) * 12 + ("SIGTERM", "SIGINT", "SIGHUP", "SIGTERM then SIGKILL")
MOMENTS = ("at any time",) * 2 + ("at the start", "while saving", "while saving", "after a line")
ALLOWED = {  # exit codes by signal; 0: it had just ended
    "SIGKILL": {-9, 0},
    "SIGTERM": {143, -15, 0},
    "SIGINT": {130, -2, 0},
    "SIGHUP": {129, -1, 0},
    "SIGTERM then SIGKILL": {143, -15, -9, 0},
}
PATIENCE_S = 300.0


@dataclass
class Trial:
    """What was done to a subject, and what it lost: ``faults``, none of which there may be."""

    subject: str
    number: int
    kills: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def straight(subject: Subject, out: Path) -> tuple[Path, float]:
    """Return the folder of the subject that nothing stopped, made once, and the seconds that it took."""
    folder, record = out / subject.name / "straight", out / subject.name / "seconds"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Lock(folder.with_name(".lock"), subject.name, "", lambda _: None):
        if not record.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            begin = time.monotonic()
            code = _finish(subject, folder)
            if code != 0:
                raise RuntimeError(f"{subject.name} does not run at all: exit code {code}, {folder}/log")
            record.write_text(str(time.monotonic() - begin))
    return folder, float(record.read_text())


def _finish(subject: Subject, folder: Path) -> int | None:
    subject.prepare(folder)
    port = free_port()
    server = _served(folder, port) if subject.is_served else None
    code = fork(subject.command(folder, port), folder, folder / "log").wait(PATIENCE_S)
    if server:
        server.kill()
    return code


def _served(folder: Path, port: int) -> Child:
    """Start the server and wait until it listens."""
    server = serve(folder, port)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not server.ended():
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.02)
    return server


def attempt(subject: Subject, number: int, seed: int, out: Path, most: int = 4) -> Trial:
    """Begin the subject in a new folder, kill it up to ``most`` times, let it end, and compare."""
    like, seconds = straight(subject, out)
    draw, trial = random.Random(f"{seed} {subject.name} {number}"), Trial(subject.name, number)
    folder, port = out / subject.name / f"{number:04d}", free_port()
    shutil.rmtree(folder, ignore_errors=True)
    subject.prepare(folder)
    server = _served(folder, port) if subject.is_served else None
    for _ in range(draw.randint(min(2, most), most)):
        child = fork(subject.command(folder, port), folder, folder / "log")
        moment, name = draw.choice(MOMENTS), draw.choice(SIGNALS)
        _wait_for(moment, draw, child, seconds, lambda: subject.run_folders(folder))
        if server and draw.random() < 0.5:
            server.kill()
            trial.kills.append(f"SIGKILL of the server {moment}")
            time.sleep(draw.uniform(0, 0.3))
            server = _served(folder, port)
            time.sleep(draw.uniform(0, 0.3))
        code = _strike(child, name, draw, group=subject.is_comparison and name == "SIGINT")
        trial.kills.append(f"{name} {moment}{' (ended before)' if code == 0 else ''}")
        if code not in ALLOWED[name]:
            trial.faults.append(f"{name} {moment}: exit code {code}")
    code = fork(subject.command(folder, port), folder, folder / "log").wait(PATIENCE_S)
    if server:
        server.kill()
    trial.faults += [f"exit code {code} at the end"] * (code != 0) or differences(subject, like, folder)
    if "Traceback" in (folder / "log").read_text(errors="replace"):
        trial.faults.append("a traceback in the log")
    trial.faults += _left_over(folder)
    if not trial.faults:
        shutil.rmtree(folder)
    return trial


def _wait_for(moment: str, draw: random.Random, child: Child, seconds: float, runs: Callable[[], list[Path]]) -> None:
    """Wait for a moment in the life of a child; not beyond its end."""
    if moment == "at the start":
        time.sleep(draw.uniform(0, 0.4))
        return
    if moment == "at any time":
        time.sleep(draw.uniform(0, 0.7 * seconds))
        return

    def seen() -> int:
        if moment == "while saving":
            return sum(1 for run in runs() for _ in run.glob("checkpoints/.*.part"))
        return sum(file.stat().st_size for run in runs() for file in run.glob("metrics.jsonl"))

    before, end = (0 if moment == "while saving" else seen()), time.monotonic() + 3 * seconds
    for _ in range(draw.randint(1, 3)):  # the first, second or third
        while seen() <= before and not child.ended() and time.monotonic() < end:
            time.sleep(0.0005)
        if moment == "after a line":
            before = seen()
    time.sleep(draw.uniform(0, 0.03))


def _strike(child: Child, name: str, draw: random.Random, *, group: bool) -> int | None:
    """Send a signal and wait for the end; return the exit code."""
    first, _, second = name.partition(" then ")
    child.send(getattr(signal, first), group=group)
    if second:
        time.sleep(draw.uniform(0, 0.2))
        child.send(getattr(signal, second))
    return child.wait(PATIENCE_S)


def differences(subject: Subject, like: Path, folder: Path) -> list[str]:
    """Say in what the runs of a subject differ from those that nothing stopped."""
    names = [[run.name for run in subject.run_folders(place)] for place in (like, folder)]
    if names[0] != names[1]:
        return [f"runs {names[1]}, not {names[0]}"]
    out = []
    for one, other in zip(subject.run_folders(like), subject.run_folders(folder), strict=True):
        out += [f"{other.name}: {fault}" for fault in _run_differences(one, other)]
    if subject.is_comparison:
        for record in sorted((like / "out/runs").iterdir()):
            if _record(record) != _record(folder / "out/runs" / record.name):
                out.append(f"{record.name} differs")
        if not (folder / "out/comparison.html").is_file():
            out.append("no page")
    return out


def _run_differences(one: Path, other: Path) -> list[str]:
    out = []
    if (names := _names(other)) != _names(one):
        out.append(f"files differ: {sorted(names ^ _names(one))}")
    if timeless(one / "metrics.jsonl") != timeless(other / "metrics.jsonl"):
        out.append("metrics.jsonl differs")
    if (one / "evaluations.jsonl").read_bytes() != (other / "evaluations.jsonl").read_bytes():
        out.append("evaluations.jsonl differs")
    if json.loads((other / "run.json").read_text())["status"] != "finished":
        out.append("run.json does not say finished")
    last = sorted((one / "checkpoints").iterdir())[-1].name
    for name in ("model.safetensors", "training.safetensors"):
        files = [run / "checkpoints" / last / name for run in (one, other)]
        if not files[1].is_file() or files[0].read_bytes() != files[1].read_bytes():
            out.append(f"{last}/{name} differs")
    if not out and stored_state(one / "checkpoints" / last) != stored_state(other / "checkpoints" / last):
        out.append(f"{last}/state.json differs")
    return out


def _names(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def _record(file: Path) -> dict[str, Any]:
    """A record of a comparison without what depends on time."""
    if not file.is_file():
        return {}
    record = json.loads(file.read_text())
    scores = [{key: value for key, value in score.items() if key != "cpu_s"} for score in record["scores"]]
    return {key: value for key, value in record.items() if key != "cpu_s"} | {"scores": scores}


def _left_over(folder: Path) -> list[str]:
    """Say which worker processes of a trial are still there after five seconds."""
    end, left = time.monotonic() + 5, ["?"]
    while left and time.monotonic() < end:
        left = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder / "far.py") in words:
                left.append(f"process {file.parent.name} is left over")
        time.sleep(0.05 if left else 0)
    return left


def summary(trials: list[Trial]) -> str:
    """A table of the kills by subject, and of the signals."""
    by_subject: dict[str, Counter[str]] = {}
    signals: Counter[str] = Counter()
    for trial in trials:
        counts = by_subject.setdefault(trial.subject, Counter())
        counts["runs"] += 1
        counts["kills"] += len(trial.kills)
        counts["after the end"] += sum("ended before" in kill for kill in trial.kills)
        counts["faults"] += bool(trial.faults)
        signals.update(kill.removesuffix(" (ended before)") for kill in trial.kills)
    keys = ("runs", "kills", "after the end", "faults")
    lines = [f"{'':28}" + "".join(f"{key:>15}" for key in keys)]
    total = sum(by_subject.values(), Counter())
    for name, counts in (*sorted(by_subject.items()), ("all", total)):
        lines.append(f"{name:28}" + "".join(f"{counts[key]:>15}" for key in keys))
    return "\n".join([*lines, "", *(f"{count:5}  {kill}" for kill, count in sorted(signals.items()))])


def plain(trial: Trial) -> dict[str, Any]:
    """A trial as a line of the record."""
    return dataclasses.asdict(trial)
