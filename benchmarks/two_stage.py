"""Base, SFT, SFT + DDPO and SFT + FlowGRPO at four training lengths and three seeds, on the epsilon model.

    python benchmarks/two_stage.py --out docs/results/two-stage     (repeat it to go on; --workers 2: two at once)

Works in the folder ``work`` beside ``--out`` or where ``--work`` says: a drawn booru, runs, records. Prints and writes
``evaluation.json`` and ``table.md``.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grpaint.measures.intervals import mean_interval
from grpaint.run.folder import RunFolder

RECIPES = Path(__file__).resolve().parent.parent / "examples/two-stage"
# in iterations: 69, 139, 277 and 554 thousand model evaluations, and about 53, 106, 211 and 422: groups that begin at a
# reference take fewer steps
LENGTHS = {"ddpo": (13, 26, 52, 104), "flow-grpo": (25, 50, 100, 200)}
SEEDS = (0, 1, 2)
# a measure, what it stands in for, and its sign: rewards are higher where better, and LPIPS is a distance
MEASURES = (
    ("fid", "FID", 1),
    ("scenes-scorer", "CLIP-Score", 1),
    ("scenes-distance", "LPIPS", -1),
    ("ssim", "SSIM", 1),
    ("psnr", "PSNR", 1),
    ("scenes-cleanliness", "aesthetic", 1),
    ("strict", "strict", 1),
)


def grpaint(work: Path, *words: str) -> None:
    """One of our commands in the working folder."""
    print("$ grpaint", *words, flush=True)
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    program = [sys.executable, "-c", "from grpaint.cli import main; main()"]
    subprocess.run([*program, *words], cwd=work, env=environment, stdout=subprocess.DEVNULL, check=True)


def stage(work: Path, command: str, recipe: str, name: str, *words: str) -> None:
    """A run, begun or gone on with."""
    folder = RunFolder(work / "runs" / name)
    if not folder.path.exists():
        grpaint(work, command, str(RECIPES / f"{recipe}.toml"), "--name", name, *words)
    elif folder.facts().get("status") != "finished":
        grpaint(work, command, "--name", name, "--resume")


def train(work: Path, workers: int) -> None:
    """The data, stage one, and every run of stage two."""
    if not (work / "drawn").exists():
        grpaint(work, "data", "draw", "--out", "drawn", "--count", "4000", "--held-out", "1024")
    stage(work, "sft", "sft", "two-stage-sft")
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(stage, work, "train", method, f"{method}-{seed}", "--set", f"train.seed={seed}")
            for seed in SEEDS
            for method in LENGTHS
        ]
        for job in jobs:
            job.result()


def sources(seed: int) -> list[str]:
    """Of one seed: the base, SFT and every length; the last one's recipe is what all are held to."""
    trained = [
        f"{method}-{length}-s{seed}=runs/{method}-{seed}/checkpoints/{length:06d}"
        for method, lengths in LENGTHS.items()
        for length in lengths
    ]
    return ["base=runs/two-stage-sft:base", "sft=runs/two-stage-sft/checkpoints/000600", *trained]


def judge(work: Path, seed: int, prompts: int) -> dict[str, Any]:
    """All measures of one seed's models on the same prompts and noise."""
    out = work / f"evaluation-{seed}"
    grpaint(work, "evaluate", *sources(seed), "--out", str(out), "--set", f"evaluate.prompts={prompts}")
    report: dict[str, Any] = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    return report


Values = dict[str, dict[str, list[float]]]  # by source without its seed, then by measure: a value a seed


def values_of(results: list[dict[str, Any]]) -> Values:
    """What was measured, seed by seed."""
    signs, values = {name: sign for name, _, sign in MEASURES}, Values()
    for entry in (entry for result in results for entry in result["measures"] if entry["measure"] in signs):
        for source, estimate in entry["values"].items():
            cells = values.setdefault(re.sub(r"-s\d+$", "", source), {})
            cells.setdefault(entry["measure"], []).append(signs[entry["measure"]] * estimate["value"])
    return values


def table(rows: Values) -> str:
    """Markdown: means over seeds, with Student's 95% interval where they differ."""
    lines = ["| | " + " | ".join(f"{title} ({name})" for name, title, _ in MEASURES) + " |"]
    lines.append("|---" * (len(MEASURES) + 1) + "|")
    for source, values in rows.items():
        lines.append(f"| {source} | " + " | ".join(_cell(values.get(name, [])) for name, _, _ in MEASURES) + " |")
    return "\n".join(lines)


def differences(rows: Values) -> Values:
    """FlowGRPO less DDPO at each length, and each less SFT, paired by seed."""
    pairs = [(f"flow-grpo-{a}", f"ddpo-{b}") for b, a in zip(*LENGTHS.values(), strict=True)]
    pairs += [(f"{method}-{length}", "sft") for method, lengths in LENGTHS.items() for length in lengths]
    return {
        f"{one} less {other}": {
            name: [a - b for a, b in zip(rows[one][name], rows[other][name], strict=True)] for name, _, _ in MEASURES
        }
        for one, other in pairs
    }


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    if len(set(values)) == 1:
        return f"{values[0]:.4g}"
    mean, low, high = mean_interval(values)
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=1024)
    given = parser.parse_args()
    work = (given.work or given.out / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    train(work, given.workers)
    results = [judge(work, seed, given.prompts) for seed in SEEDS]
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results)
    (given.out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    shutil.copy(work / f"evaluation-{SEEDS[0]}" / "evaluation.html", given.out / "evaluation.html")
    rows = values_of(results)
    page = f"{table(rows)}\n\n{table(differences(rows))}"
    (given.out / "table.md").write_text(page + "\n", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
