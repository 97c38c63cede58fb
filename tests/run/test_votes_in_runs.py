"""A run that waits for people: killed and resumed it asks nothing twice, loses no vote, and ends the same."""

import signal
import time
from pathlib import Path

import pytest

import tiny_runs
from grpaint.storage.votes import VOTES_FILE, VoteFile
from tiny_runs import TINY, command, lines, process, status
from voting import voting

pytestmark = pytest.mark.usefixtures("small_network")

VOTERS = ["Ann", "Ben"]
SETS = [*TINY, 'rewards={people={kind="votes",votes=2}}', "evaluate.pictures=0", "checkpoint.every=2"]
GROUPS = 4 * 3  # iterations x prompts


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def _until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _standing(run: Path) -> tuple[int, int]:
    with VoteFile(run / VOTES_FILE) as votes:
        return votes.standing()


def test_a_run_that_is_stopped_and_killed_asks_nothing_twice_and_loses_no_vote():
    whole, it = Path("runs/whole"), Path("runs/it")
    with voting(whole / VOTES_FILE, VOTERS) as cast:
        end = command("train", "flow-grpo-fast", "--name", "whole", sets=SETS)
    assert end.code == 0, end.err
    assert end.out.count("grpaint vote runs/whole") == 1
    assert len(cast) == len(set(cast)) == 2 * GROUPS
    every: list[tuple[str, str]] = []

    running = process("train", "flow-grpo-fast", "--name", "it", sets=SETS)
    with voting(it / VOTES_FILE, VOTERS, until=15) as cast:  # within the third iteration
        _until(lambda: len(cast) == 15)
    time.sleep(0.5)
    running.kill()
    running.communicate()
    every += cast
    assert _standing(it)[1] == 15
    with voting(it / VOTES_FILE, VOTERS, until=1) as cast:  # nobody runs, and votes are taken
        _until(lambda: cast)
    every += cast

    running = process("train", "--name", "it", "--resume")
    with voting(it / VOTES_FILE, VOTERS, until=5) as cast:  # within the fourth
        _until(lambda: len(cast) == 5)
    time.sleep(0.5)
    running.send_signal(signal.SIGTERM)  # it waits for people, and does not wait for them to end
    _, err = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, err
    assert "grpaint: stopped by SIGTERM while it waited; what was saved before stays" in err
    assert "Traceback" not in err
    assert status(it)["status"] == "interrupted"
    every += cast

    with voting(it / VOTES_FILE, VOTERS) as cast:
        end = command("train", "--name", "it", "--resume")
    assert end.code == 0, end.err
    every += cast
    assert len(every) == len(set(every)) == 2 * GROUPS
    assert _standing(it) == (0, 2 * GROUPS)
    tiny_runs.same(whole, it)
    for line in lines(it / "metrics.jsonl"):
        assert (line["cost/people/groups"], line["cost/people/votes"]) == (3, 6)
        assert line["advantage/zero_spread_groups"] == 0


def test_a_run_goes_on_without_the_groups_that_nobody_judges():
    sets = [*SETS[:-3], 'rewards={people={kind="votes",votes=1,wait_s=0.5}}', *SETS[-2:], "train.iterations=2"]
    end = command("train", "flow-grpo-fast", "--name", "it", sets=sets)
    assert end.code == 0, end.err
    for line in lines(Path("runs/it/metrics.jsonl")):
        assert "reward/people" not in line
        assert line["advantage/zero_spread_groups"] == 3
        assert (line["cost/people/votes"], line["train/skipped_updates"]) == (0, 1)
    assert command("report", "it").code == 0


@pytest.mark.slow
def test_one_of_two_processes_asks_for_both():
    sets = [*TINY, "evaluate.pictures=0", "train.iterations=1"]
    people = 'rewards={people={kind="votes",place="node",wait_s=300}}'
    with voting(Path("runs/two") / VOTES_FILE, ["Ann"]) as cast:
        running = process("train", "flow-grpo-fast", "--name", "two", "--processes", "2", sets=[*sets, people])
        out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert out.count("grpaint vote runs/two") == 1
    assert len(cast) == 3
    (line,) = lines(Path("runs/two/metrics.jsonl"))
    assert (line["cost/people/groups"], line["cost/people/votes"]) == (3, 3)
    assert line["advantage/zero_spread_groups"] == 0


def test_people_judge_evaluations_without_a_part_in_training():
    """The voters prefer redder pictures; the base has a half, and training is that of a run without them."""
    sets = [*TINY, "evaluate.pictures=3", tiny_runs.REWARD]
    assert command("train", "flow-grpo-fast", "--name", "alone", sets=sets).code == 0
    people = 'rewards.people={kind="votes",votes=2,weight=0}'
    with voting(Path("runs/it") / VOTES_FILE, VOTERS) as cast:
        end = command("train", "flow-grpo-fast", "--name", "it", sets=[*sets, people])
    assert end.code == 0, end.err
    base, *later = lines(Path("runs/it/evaluations.jsonl"))
    assert (base["reward/people"], base["reward/people_by_prompt"]) == (0.5, [0.5] * 3)
    for line in later:
        assert set(line["reward/people_by_prompt"]) <= {0.0, 1.0}  # both voters agree
        assert line["reward/people"] == pytest.approx(sum(line["reward/people_by_prompt"]) / 3)
    assert len(cast) == 2 * 3 * len(later)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        alone, it = (tiny_runs.timeless(Path(f"runs/{run}/{name}")) for run in ("alone", "it"))
        without = [{key: value for key, value in line.items() if "people" not in key} for line in it]
        assert [line | {"cost/evaluation_model_evaluations": 0} for line in without] == [
            line | {"cost/evaluation_model_evaluations": 0} for line in alone
        ]
    assert command("report", "it").code == 0
    assert command("evaluate", "it").code == 0
    refused = command("train", "flow-grpo-fast", "--name", "no", sets=[*sets, people, "evaluate.pictures=0"])
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "raise evaluate.pictures" in refused.err


def test_a_run_with_a_foreign_file_of_votes_ends_in_a_line():
    sets = [*SETS, "train.iterations=1"]
    with voting(Path("runs/it") / VOTES_FILE, VOTERS):
        assert command("train", "flow-grpo-fast", "--name", "it", sets=sets).code == 0
    for left in Path("runs/it").glob(f"{VOTES_FILE}*"):
        left.unlink()
    Path("runs/it", VOTES_FILE).write_text("no database" * 1000)
    end = command("train", "--name", "it", "--resume", sets=["train.iterations=2"])
    assert (end.code, end.err.count("\n")) == (1, 1)
    assert "reward people" in end.err
    assert "damaged (file is not a database)" in end.err
