"""The file of a run's votes: what is asked and answered stays, whoever is killed; what is no such file is refused."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from grpaint.core.errors import ConfigError
from grpaint.storage.ballots import Question, Ranking, VoteRefused
from grpaint.storage.votes import VoteFile


def question(key: str, images: int = 4, choices: int = 3) -> Question:
    return Question(key, f"caption of {key}", [f"{key}{place}".encode() for place in range(images)], choices)


@pytest.fixture
def votes(tmp_path):
    with VoteFile(tmp_path / "votes.sqlite", create=True) as file:
        yield file


def test_a_question_is_asked_once_and_keeps_its_votes(votes):
    ann, ben = votes.enrol(["Ann", "Ben"])
    assert votes.ask([question("a"), question("b")]) == ["a", "b"]
    votes.vote(ann.number, votes.next_question(ann.number).number, [2, 0])
    assert votes.ask([question("a"), question("b")]) == ["a", "b"]  # as after a restart
    assert votes.standing() == (2, 1)
    first = votes.next_question(ben.number)
    votes.vote(ben.number, first.number, [])
    votes.vote(ben.number, votes.next_question(ben.number).number, [1])
    assert votes.next_question(ben.number) is None
    assert votes.settle(["a", "b"], 2) == [key for key in ("a", "b") if len(votes.rankings(key)) < 2]
    assert sum(len(votes.rankings(key)) for key in ("a", "b")) == 3


def test_equal_groups_of_one_call_are_one_question_and_odd_names_are_kept_as_text(votes):
    (ann,) = votes.enrol(["Ann \udcff"])
    assert votes.enrol(["Ann \udcff"]) == [ann]
    odd = Question("a", "caption \ud800", [b"a0", b"a1"], 1)
    assert votes.ask([odd, odd]) == ["a", "a"]
    assert votes.standing() == (1, 0)
    assert votes.next_question(ann.number).caption == "caption \ufffd"


def test_a_new_question_closes_those_that_the_run_has_passed(votes):
    votes.ask([question("a"), question("b")])
    assert votes.ask([question("b")]) == ["b"]  # nothing new: the run may still come to the other
    assert votes.standing()[0] == 2
    assert votes.ask([question("b"), question("c")]) == ["b", "c"]
    assert votes.standing()[0] == 2
    assert votes.ask([question("a")]) == []


def test_two_voters_begin_at_different_questions(votes):
    ann, ben = votes.enrol(["Ann", "Ben"])
    votes.ask([question("a"), question("b")])
    assert votes.next_question(ann.number).number != votes.next_question(ben.number).number


def test_what_is_no_vote_is_refused(votes):
    (ann,) = votes.enrol(["Ann"])
    votes.ask([question("a")])
    number = votes.next_question(ann.number).number
    for picks in ([4], [-1], [0, 0], [0, 1, 2, 3]):
        with pytest.raises(VoteRefused):
            votes.vote(ann.number, number, picks)
    with pytest.raises(VoteRefused, match="no such question"):
        votes.vote(ann.number, 99, [0])
    votes.vote(ann.number, number, [0])
    with pytest.raises(VoteRefused, match="You have voted"):
        votes.vote(ann.number, number, [1])
    votes.settle(["a"], 1)
    (ben,) = votes.enrol(["Ben"])
    with pytest.raises(VoteRefused, match="closed"):
        votes.vote(ben.number, number, [1])
    assert votes.image(number, 0) is None
    assert votes.rankings("a") == [Ranking("Ann", (0,))]


def test_a_voter_keeps_his_link(votes):
    ann = votes.enrol(["Ann"])[0]
    ben, again = votes.enrol(["Ben", "Ann"])
    assert again == ann
    assert len({ann.token, ben.token}) == 2
    assert len(ann.token) >= 20
    assert (votes.file.stat().st_mode & 0o777) == 0o600
    for name in ("", "  ", "x" * 61):
        with pytest.raises(ConfigError, match="a name of 1 to 60 characters"):
            votes.enrol([name])


def test_answered_questions_are_given_with_their_images(votes):
    ann, ben = votes.enrol(["Ann", "Ben"])
    votes.ask([question("a"), question("b")])
    votes.vote(ben.number, 1, [3])
    votes.vote(ann.number, 1, [1, 2])
    ((asked, rankings),) = votes.answered()
    assert asked == question("a")
    assert rankings == [Ranking("Ann", (1, 2)), Ranking("Ben", (3,))]


CAST = """
import sys
from pathlib import Path
from grpaint.storage.votes import VoteFile
with VoteFile(Path(sys.argv[1])) as votes:
    for number in range(1, 1000):
        votes.vote(1, number, [number % 4])
        print(number, flush=True)
"""


def test_a_vote_that_was_acknowledged_outlives_its_process(votes):
    votes.enrol(["Ann"])
    votes.ask([question(str(number)) for number in range(1000)])
    process = subprocess.Popen([sys.executable, "-c", CAST, str(votes.file)], stdout=subprocess.PIPE, text=True)
    for _ in range(40):
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    acknowledged = max([acknowledged, *map(int, rest.split())])
    assert votes.standing()[1] in (acknowledged, acknowledged + 1)  # one more if killed before it said so
    for number in range(1, acknowledged + 1):
        assert votes.rankings(str(number - 1)) == [Ranking("Ann", (number % 4,))]


def test_many_threads_ask_and_vote_at_once(tmp_path):
    file = tmp_path / "votes.sqlite"
    with VoteFile(file, create=True) as votes:
        voters = votes.enrol([f"v{number}" for number in range(4)])
        votes.ask([question(str(number)) for number in range(20)])
    failures = []

    def answer(voter: int) -> None:
        try:
            with VoteFile(file) as own:
                while asked := own.next_question(voter):
                    own.vote(voter, asked.number, [voter % 4])
        except Exception as error:  # noqa: BLE001 - reason: the test shows it
            failures.append(error)

    threads = [threading.Thread(target=answer, args=[voter.number]) for voter in voters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with VoteFile(file) as votes:
        assert votes.standing() == (20, 80)


def test_many_processes_may_make_it_at_once(tmp_path):
    program = f"""
from pathlib import Path
from grpaint.storage.votes import VoteFile
for number in range(20):
    VoteFile(Path({str(tmp_path)!r}, f"{{number}}.sqlite"), create=True).close()
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.communicate()[1] == b""


def _foreign(file: Path) -> None:
    with sqlite3.connect(file) as sql:
        sql.execute("CREATE TABLE vote (x)")
    sql.close()


def _with_a_trigger(file: Path) -> None:
    VoteFile(file, create=True).close()
    with sqlite3.connect(file) as sql:
        sql.execute("CREATE TRIGGER t AFTER INSERT ON vote BEGIN DELETE FROM vote; END")
    sql.close()


def _later(file: Path) -> None:
    VoteFile(file, create=True).close()
    with sqlite3.connect(file) as sql:
        sql.execute("PRAGMA user_version = 9")
    sql.close()


def _damaged(file: Path) -> None:
    with VoteFile(file, create=True) as votes:
        votes.enrol(["Ann"])
        votes.ask([question(str(number), images=9) for number in range(300)])
    raw = bytearray(file.read_bytes())
    raw[8192:40960] = b"\xff" * (40960 - 8192)
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_foreign, "no file of votes of grpaint"),
        (_with_a_trigger, "no file of votes of grpaint"),
        (_later, r"votes of a later version of grpaint \(9\)"),
        (_damaged, "damaged"),
        (lambda file: file.write_bytes(b"not a database, but long enough to be read as one" * 100), "damaged"),
        (lambda file: file.symlink_to("/etc/passwd"), "no regular file"),
        (lambda file: os.mkfifo(file), "no regular file"),
        (lambda file: file.mkdir(), "no regular file"),
    ],
)
@pytest.mark.parametrize("create", [False, True])
def test_what_is_no_file_of_votes_is_refused_in_a_line(make, message, create, tmp_path):
    file = tmp_path / "votes.sqlite"
    make(file)
    with pytest.raises(ConfigError, match=message) as refusal:
        VoteFile(file, create=create)
    assert str(refusal.value).startswith(str(file))
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_made_by_a_run_alone(tmp_path):
    with pytest.raises(ConfigError, match="no votes there"):
        VoteFile(tmp_path / "votes.sqlite")
    assert not list(tmp_path.iterdir())
