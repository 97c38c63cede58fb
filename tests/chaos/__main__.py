"""``scripts/chaos``: kill subjects until there were so many kills; exit 1 if one lost anything. Repeat it to go on."""

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.subjects import Subject

TESTS = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="records; what failed stays there")
    parser.add_argument("--only", default="", help="subjects, separated by commas")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "src")]
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with warm(out):
        from chaos.subjects import subjects

        names = options.only.split(",") if options.only else []
        return _kill(options, subjects(out / "bases", names), out)


@contextlib.contextmanager
def warm(out: Path) -> Iterator[None]:
    """Import what the commands need, and make the built-in model small; nothing is computed before a fork."""
    import diffusers.models.unets.unet_2d_condition  # noqa: F401
    import peft  # noqa: F401
    import pytest
    import uvicorn  # noqa: F401

    from chaos import processes
    from grpaint.commands import serve_reward, train  # noqa: F401
    from grpaint.commands.compare import command, jobs  # noqa: F401
    from small_network import small_network

    os.environ["XDG_CACHE_HOME"] = str(out / "cache")
    with pytest.MonkeyPatch.context() as patch, small_network():
        patch.setattr(jobs, "subprocess", SimpleNamespace(run=processes.run))
        yield


def _kill(options: argparse.Namespace, chosen: "list[Subject]", out: Path) -> int:
    """Kill what was ``chosen`` in some forked workers; return the exit code."""
    from chaos.trials import Trial, attempt, plain, summary

    record = out / f"kills-{options.seed}.jsonl"

    def trials() -> list[Trial]:
        lines = record.read_text().split("\n")[:-1] if record.is_file() else []
        return [Trial(**json.loads(line)) for line in lines]

    begin, workers = time.monotonic(), []
    for worker in range(options.workers):
        pid = os.fork()
        if pid:
            workers.append(pid)
            continue
        code = 1
        try:
            number = worker
            done = {(trial.subject, trial.number) for trial in trials()}
            while sum(len(trial.kills) for trial in trials()) < options.kills:
                subject = chosen[number % len(chosen)]
                if (subject.name, number) not in done:
                    trial = attempt(subject, number, options.seed, out)
                    with record.open("a") as file:
                        file.write(json.dumps(plain(trial)) + "\n")
                    for fault in trial.faults:
                        print(f"{subject.name} {number}: {fault} ({', '.join(trial.kills)})", flush=True)
                number += options.workers
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    every = trials()
    print(summary(every))
    print(f"seed {options.seed}, {time.monotonic() - begin:.0f} s now, {options.workers} at once; {record}")
    return int(any(codes) or any(trial.faults for trial in every))


if __name__ == "__main__":
    sys.exit(main())
