"""The file of a run's votes: questions, which are groups of images, and who ranked them how.

It is SQLite in WAL mode. The training process asks, the server of votes answers, and either may be killed at any
moment: each method is one transaction that is on the disk when it returns. A question is named by a key of its caption
and pixels, so that a resumed run, which draws the same images, comes upon the question that it had asked.
"""

import contextlib
import json
import secrets
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from grpaint.core.errors import ConfigError
from grpaint.core.text import one_line, without_surrogates
from grpaint.storage.ballots import OpenQuestion, Question, Ranking, Voter, VoteRefused
from grpaint.storage.reading import parse_json

VOTES_FILE = "votes.sqlite"
APPLICATION, VERSION = 0x67727076, 1  # "grpv"
BUSY_S = 30.0  # how long a transaction waits for another process's
MOST_NAME, MOST_VOTERS = 60, 1000
SCHEMA = (
    "CREATE TABLE question (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, caption TEXT NOT NULL, "
    "images INTEGER NOT NULL, choices INTEGER NOT NULL, asked REAL NOT NULL, closed REAL) STRICT",
    "CREATE TABLE image (question INTEGER NOT NULL REFERENCES question, place INTEGER NOT NULL, png BLOB NOT NULL, "
    "PRIMARY KEY (question, place)) STRICT",
    "CREATE TABLE voter (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL UNIQUE) STRICT",
    "CREATE TABLE vote (question INTEGER NOT NULL REFERENCES question, voter INTEGER NOT NULL REFERENCES voter, "
    "picks TEXT NOT NULL, cast_at REAL NOT NULL, PRIMARY KEY (question, voter)) STRICT",
    "CREATE INDEX open_questions ON question (number) WHERE closed IS NULL",
)


class VoteFile:
    """An open file of votes, for one call at a time. ``create`` makes it if it is missing.

    Raises:
        ConfigError: it is missing, no file of votes, damaged, or of a later version.
    """

    def __init__(self, file: Path, *, create: bool = False) -> None:
        self.file = file
        _check_regular(file, create=create)
        with self._explained():
            self._sql = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._open(create=create)
            except BaseException:
                self._sql.close()
                raise

    def _open(self, *, create: bool) -> None:
        if create:
            with contextlib.suppress(OSError):
                self.file.chmod(0o600)  # the tokens of the voters are in it
        self._sql.execute("PRAGMA trusted_schema = OFF")
        with self._transaction():
            if create and not self._sql.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in SCHEMA:
                    self._sql.execute(statement)
                self._sql.execute(f"PRAGMA application_id = {APPLICATION}")
                self._sql.execute(f"PRAGMA user_version = {VERSION}")
        self._check()
        self._use_wal()
        self._sql.execute("PRAGMA synchronous = FULL")  # a vote that was thanked for outlives a power failure
        self._sql.execute("PRAGMA foreign_keys = ON")

    def _use_wal(self) -> None:
        """Change a new file to WAL mode; SQLite itself does not wait until others let it, as it does elsewhere."""
        end = time.monotonic() + BUSY_S
        while True:
            try:
                self._sql.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _check(self) -> None:
        """Refuse a file whose tables are not ours, or whose pages are damaged."""
        (application,), (version,) = (
            self._sql.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        schema = {text for (text,) in self._sql.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if application == APPLICATION and version > VERSION:
            raise ConfigError(f"{self.file}: votes of a later version of grpaint ({version}); update grpaint.")
        if application != APPLICATION or schema != set(SCHEMA):
            raise ConfigError(f"{self.file}: no file of votes of grpaint. Move it away, and votes begin anew.")
        (verdict,) = self._sql.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise self._damaged(verdict)

    def _damaged(self, reason: object) -> ConfigError:
        return ConfigError(
            f"{self.file}: damaged ({one_line(str(reason), 120)}). Move it and its -wal away, and votes begin anew; "
            f"`sqlite3 {self.file.name} .recover` may save those that it holds."
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of SQLite into one line.

        Raises:
            ConfigError: the file is no database, damaged, cannot be written or is in use.
        """
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, read-only, a full disk
            raise ConfigError(f"{self.file}: cannot be used ({error}).") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """Store questions that are not there yet, and return the keys of those that are still open.

        Where one of them is new, the run has passed all others that are open: these are closed.
        """
        keys = [question.key for question in questions]
        with self._transaction() as sql:
            new = {question.key: question for question in questions if self._number(question.key) is None}.values()
            if new:
                marks = ",".join("?" * len(keys))
                passed = f"UPDATE question SET closed = ? WHERE closed IS NULL AND key NOT IN ({marks})"
                sql.execute(passed, [time.time(), *keys])
            for question in new:
                caption = without_surrogates(question.caption)
                row = (question.key, caption, len(question.images), question.choices, time.time())
                cursor = sql.execute("INSERT INTO question VALUES (NULL, ?, ?, ?, ?, ?, NULL)", row)
                images = [(cursor.lastrowid, place, png) for place, png in enumerate(question.images)]
                sql.executemany("INSERT INTO image VALUES (?, ?, ?)", images)
            return [key for key in keys if self._is_open(key)]

    def _number(self, key: str) -> int | None:
        row = self._sql.execute("SELECT number FROM question WHERE key = ?", [key]).fetchone()
        return row[0] if row else None

    def _is_open(self, key: str) -> bool:
        return bool(self._sql.execute("SELECT 1 FROM question WHERE key = ? AND closed IS NULL", [key]).fetchone())

    def settle(self, keys: Sequence[str], votes: int) -> list[str]:
        """Close the questions that have ``votes`` votes or more; return the keys of those that stay open."""
        with self._transaction() as sql:
            for key in keys:
                sql.execute(
                    "UPDATE question SET closed = ? WHERE key = ? AND closed IS NULL AND "
                    "(SELECT count(*) FROM vote WHERE question = number) >= ?",
                    [time.time(), key, votes],
                )
            return [key for key in keys if self._is_open(key)]

    def rankings(self, key: str) -> list[Ranking]:
        """Return the votes on a question, in the order of the voters."""
        with self._explained():
            rows = self._sql.execute(
                "SELECT voter.name, picks FROM vote JOIN voter ON voter.number = voter "
                "WHERE question = (SELECT number FROM question WHERE key = ?) ORDER BY voter.number",
                [key],
            ).fetchall()
        return [Ranking(name, tuple(parse_json(text, VOTES_FILE))) for name, text in rows]

    def enrol(self, names: Sequence[str]) -> list[Voter]:
        """Return the voters of these names, each with his link's token; new ones are given one.

        Raises:
            ConfigError: a name is empty or too long, or there are too many voters.
        """
        names = [without_surrogates(name) for name in names]
        for name in names:
            if not name.strip() or len(name) > MOST_NAME:
                raise ConfigError(f'voter "{one_line(name, 80)}": a name of 1 to {MOST_NAME} characters.')
        with self._transaction() as sql:
            for name in names:
                sql.execute("INSERT OR IGNORE INTO voter VALUES (NULL, ?, ?)", [name, secrets.token_urlsafe(16)])
            (count,) = sql.execute("SELECT count(*) FROM voter").fetchone()
            if count > MOST_VOTERS:
                raise ConfigError(f"{count} voters: at most {MOST_VOTERS}.")
        known = {voter.name: voter for voter in self.voters()}
        return [known[name] for name in names]

    def voters(self) -> list[Voter]:
        """Return all voters."""
        with self._explained():
            return [Voter(*row) for row in self._sql.execute("SELECT number, name, token FROM voter ORDER BY number")]

    def next_question(self, voter: int) -> OpenQuestion | None:
        """Return an open question that a voter has not answered, one with the fewest votes; None if there is none.

        Voters begin at different questions, so that two do not both give the one vote that is needed.
        """
        with self._explained():
            rows = self._sql.execute(
                "SELECT number, key, caption, images, choices, (SELECT count(*) FROM vote WHERE question = number) "
                "FROM question WHERE closed IS NULL AND NOT EXISTS "
                "(SELECT 1 FROM vote WHERE question = number AND voter = ?) ORDER BY number",
                [voter],
            ).fetchall()
        if not rows:
            return None
        row = min(rows, key=lambda row: (row[5], (row[0] + voter) % len(rows)))
        number, key, caption, images, choices, _ = row
        return OpenQuestion(number, key, caption, images, choices, len(rows))

    def image(self, question: int, place: int) -> bytes | None:
        """Return an image of an open question as PNG; None if it is not in question."""
        with self._explained():
            row = self._sql.execute(
                "SELECT png FROM image JOIN question ON number = question "
                "WHERE question = ? AND place = ? AND closed IS NULL",
                [question, place],
            ).fetchone()
        return row[0] if row else None

    def vote(self, voter: int, question: int, picks: Sequence[int]) -> None:
        """Record a voter's picks, best first; none means that he sees no difference.

        Raises:
            VoteRefused: the question is closed or unknown, he has voted on it, or a pick is not among its images.
        """
        with self._transaction() as sql:
            row = sql.execute("SELECT images, choices, closed FROM question WHERE number = ?", [question]).fetchone()
            if row is None:
                raise VoteRefused("There is no such question.")
            images, choices, closed = row
            if closed is not None:
                raise VoteRefused("This question is closed: it has the votes that it needs, or its time is over.")
            if len(set(picks)) != len(picks) or not all(0 <= pick < images for pick in picks):
                raise VoteRefused("A vote names images of its question, each once.")
            if len(picks) > choices:
                raise VoteRefused(f"At most {choices} images may be picked.")
            try:
                row = (question, voter, json.dumps(list(picks)), time.time())
                sql.execute("INSERT INTO vote VALUES (?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise VoteRefused("You have voted on this question.") from None

    def standing(self) -> tuple[int, int]:
        """Return the number of open questions, and of votes in all."""
        with self._explained():
            (open_questions,) = self._sql.execute("SELECT count(*) FROM question WHERE closed IS NULL").fetchone()
            (votes,) = self._sql.execute("SELECT count(*) FROM vote").fetchone()
        return open_questions, votes

    def answered(self) -> Iterator[tuple[Question, list[Ranking]]]:
        """Yield every question that has a vote, with its images, and the votes on it."""
        with self._explained():
            rows = self._sql.execute(
                "SELECT number, key, caption, choices FROM question "
                "WHERE EXISTS (SELECT 1 FROM vote WHERE question = number) ORDER BY number"
            ).fetchall()
            for number, key, caption, choices in rows:
                images = self._sql.execute("SELECT png FROM image WHERE question = ? ORDER BY place", [number])
                yield Question(key, caption, [png for (png,) in images], choices), self.rankings(key)


def _check_regular(file: Path, *, create: bool) -> None:
    """Refuse what is no regular file, which SQLite would follow or wait for.

    Raises:
        ConfigError: it is a link, a folder, a pipe or a device, or is missing.
    """
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        if create:
            return
        raise ConfigError(f'{file}: no votes there; a run with a reward of kind = "votes" makes it.') from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{file}: no regular file (a link, a pipe, a device or a folder). Move it away.")
