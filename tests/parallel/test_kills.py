"""kill -9 of one of two ranks at random moments: the run starts again by itself and loses nothing."""

import logging
import os
import random
import signal
import time
from pathlib import Path

import pytest
from running import IT, children, end_of, start, wait_for_lines

from chaos.trials import MOMENTS, _run_differences, _wait_for

REWARD_FILE = """
from pathlib import Path
import torch

def score(images, prompts):
    if len(images) == 2:  # the self-test, after which weights are loaded
        Path("loading").touch()
    return images.mean((1, 2, 3)) + 0.1 * (torch.arange(len(images)) % 4)
"""
LOADING = "while weights load"
SETS = ["checkpoint.every=1", "evaluate.every=10"]


class Ranks:
    """The ranks of a run, as what waits for a moment sees them; ``seconds`` pass from a start to the first line."""

    def __init__(self, run, seconds):
        self.run, self.seconds, self.dead = run, seconds, set()

    def ended(self):
        return self.run.poll() is not None

    def alive(self):
        """Wait for both ranks of a start; return them, none if the run has ended."""
        while not self.ended():
            ranks = children(self.run.pid)
            if len(ranks) == 2 and not self.dead & set(ranks):
                return ranks
            time.sleep(0.01)
        return []

    def kill_one(self, draw):
        """Kill -9 a rank at a moment; return what was done, or nothing if the run has ended."""
        moment = draw.choice((*MOMENTS, LOADING))
        Path("loading").unlink(missing_ok=True)
        ranks = self.alive()
        if moment == LOADING:
            while not Path("loading").exists() and not self.ended():
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.3))
        else:
            _wait_for(moment, draw, self, 2 * self.seconds, lambda: [IT] if IT.exists() else [])
        rank = draw.randrange(2)
        if self.ended() or not ranks:
            return []
        os.kill(ranks[rank], signal.SIGKILL)
        self.dead |= set(ranks)
        return [f"rank {rank} {moment}"]


@pytest.mark.parametrize(
    ("kills", "iterations", "seed"),
    [(1, 5, 6), pytest.param(20, 200, 0, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
    ids=["1", "20"],
)
def test_kills_of_one_rank_lose_nothing(kills, iterations, seed, tmp_path, monkeypatch):
    def begin(name, restarts):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        Path("reward.py").write_text(REWARD_FILE)
        sets = [*SETS, f"train.iterations={iterations}"]
        return start("--processes", "2", "--max-restarts", str(restarts), sets=sets)

    begun, undisturbed = time.monotonic(), begin("undisturbed", 0)
    wait_for_lines(undisturbed)
    seconds = time.monotonic() - begun
    assert end_of(undisturbed, 900) == ""
    killed, draw = begin("killed", kills), random.Random(seed)
    ranks = Ranks(killed, seconds)
    done = [kill for _ in range(kills) for kill in ranks.kill_one(draw)]
    logging.getLogger(__name__).info("%s kills: %s", len(done), ", ".join(done))
    assert end_of(killed, 900) == ""
    assert (killed.returncode, len(done)) == (0, kills)
    assert _run_differences(tmp_path / "undisturbed" / IT, tmp_path / "killed" / IT) == []
