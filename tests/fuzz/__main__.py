"""``scripts/fuzz SUBJECT``: try cases until their number or the time is reached; exit 1 if any ended wrongly."""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

SUBJECTS = {
    "client": ("client", "run"),
    "data": ("data", "run"),
    "recipes": ("recipes", "run_shown"),
    "runs": ("recipes", "run_accepted"),
    "server": ("server", "run"),
}


def main() -> int:
    """Run the fuzzer of a subject and print its counts and its faults."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # a child of threads would hang
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Damaged and foreign input for every reader.")
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--most", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="of data, separated by commas")
    options = parser.parse_args()
    module, function = SUBJECTS[options.subject]
    extra = {"kinds": tuple(options.kinds.split(","))} if options.kinds else {}
    begin = time.monotonic()
    tally = getattr(importlib.import_module(module), function)(options.seed, options.minutes, options.most, **extra)
    for fault in tally.faults[:50]:
        print(fault)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.tried.items()))
    print(f"{options.subject}, seed {options.seed}: {tally.summary()} ({kinds}) in {time.monotonic() - begin:.0f} s")
    return bool(tally.faults)


if __name__ == "__main__":
    sys.exit(main())
