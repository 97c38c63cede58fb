"""Does the table of 100 runs of 500 evaluations open in under two seconds, and what does following it cost?

    OMP_WAIT_POLICY=PASSIVE python benchmarks/view_table.py [--runs 100] [--evaluations 500] [--rounds 5]

A short run of the built-in model is made, its lines are repeated with other numbers until there are 500 evaluations of
256 prompts and as many iterations, and the folder is copied 100 times. ``grpaint view`` serves them as a process of its
own, started anew each round, so that it has read nothing before; the files are in the system's cache.

**Starts**: from the command until it has read all runs and prints the address. **Opens**: from the start of navigation
in Chromium until every run has its row on the screen. **Poll**: an answer of runs.json, when no run has changed, and
when one has.
"""

import argparse
import http.client
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright
from processes import machine
from run_page import last_line, short_run, varied

from grpaint.run.lines import append_line

LIMIT_S = 2.0
ROWS = "document.querySelectorAll('#rows tr').length"


def lengthen(run: Path, count: int) -> None:
    """Give a run folder ``count`` iterations, each with an evaluation."""
    draw = np.random.default_rng(0)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        line = last_line(run / name)
        (run / name).unlink()
        for number in range(name == "metrics.jsonl", count):
            append_line(run / name, varied(line, draw, number / count) | {"iteration": number})


def serve(runs: Path) -> tuple[subprocess.Popen[str], str, float]:
    """Start ``grpaint view``; return it, its address, and the seconds that took."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "grpaint", "view", str(runs), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, process.stdout.readline().strip(), time.perf_counter() - start


def opening_s(browser: Browser, address: str, runs: int) -> float:
    """Return the seconds until the table has all its rows, in a window with nothing cached."""
    page = browser.new_context().new_page()
    start = time.perf_counter()
    page.goto(address)
    while page.evaluate(ROWS) < runs:
        page.wait_for_timeout(5)
    page.evaluate("new Promise(requestAnimationFrame)")
    seconds = time.perf_counter() - start
    page.context.close()
    return seconds


def poll(address: str, tag: str = "") -> tuple[float, int, str]:
    """Return the seconds, the bytes and the ETag of an answer of runs.json."""
    host, _, path = address.removeprefix("http://").partition("/")
    time.sleep(0.6)  # the server looks at the disk every half second
    start = time.perf_counter()
    connection = http.client.HTTPConnection(host)
    connection.request("GET", f"/{path}runs.json", headers={"If-None-Match": tag} if tag else {})
    answer = connection.getresponse()
    size = len(answer.read())
    connection.close()
    return time.perf_counter() - start, size, answer.headers["ETag"]


def report(name: str, values: list[float], show: Callable[[float], str] = lambda value: f"{value:.3f} s") -> None:
    """Print the median, the least and the most."""
    print(f"{name:24}{show(statistics.median(values))}  ({show(min(values))} to {show(max(values))})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    starts, opens, idle, changed = [], [], [], []
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
        print(f"Chromium {browser.version}; {machine()}; load {os.getloadavg()[0]:.1f}")
        run = short_run(Path(name))
        shutil.rmtree(run / "checkpoints")
        lengthen(run, args.evaluations)
        runs = Path(name) / "many"
        for number in range(args.runs):
            shutil.copytree(run, runs / f"run-{number:03d}")
        size = sum(file.stat().st_size for file in runs.glob("*/*.jsonl"))
        print(f"{args.runs} runs of {args.evaluations} evaluations, {size / 1e6:.0f} MB of lines")
        for _ in range(args.rounds):
            process, address, seconds = serve(runs)
            starts.append(seconds)
            opens.append(opening_s(browser, address, args.runs))
            tag = poll(address)[2]
            idle.append(poll(address, tag)[0])
            line = last_line(runs / "run-000/metrics.jsonl")
            append_line(runs / "run-000/metrics.jsonl", line | {"iteration": line["iteration"] + 1})
            seconds, sent, _ = poll(address, tag)
            changed.append(seconds)
            process.send_signal(signal.SIGINT)
            process.wait()
        browser.close()
    report("starts", starts)
    report("opens", opens)
    report("poll, nothing new", idle)
    report(f"poll, one run, {sent / 1e3:.0f} kB", changed)
    if statistics.median(opens) > LIMIT_S:
        sys.exit(f"the table took more than {LIMIT_S:g} s to open")


if __name__ == "__main__":
    main()
