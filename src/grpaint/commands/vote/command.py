"""Serve the page of votes of a run, or export its votes as a preference data set."""

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from grpaint.commands.vote.export import export_preferences
from grpaint.commands.vote.server import VotePages
from grpaint.core.errors import ConfigError
from grpaint.report.console import echo
from grpaint.run.page import locate_run
from grpaint.storage.ballots import Voter
from grpaint.storage.reading import read_toml
from grpaint.storage.votes import VOTES_FILE, VoteFile
from grpaint.web.access import is_loopback
from grpaint.web.server import Server

SECONDS, CONNECTIONS, GRACE_S = 60.0, 200, 5.0
WILDCARDS = ("0.0.0.0", "::")


def serve_votes(run: str, host: str, port: int, voters: int, names: Sequence[str]) -> None:
    """Serve the page of votes until SIGTERM or Ctrl-C, and print a link for each voter.

    ``voters`` of them have numbers for names, the others those of ``names``; earlier ones keep their links.

    Raises:
        ConfigError: there is no such run, it asks no people, or the address cannot be listened on.
    """
    if not 0 <= port < 65536:
        raise ConfigError(f"--port {port}: it must lie in 0..65535.")
    folder = locate_run(run)
    _check_asks(folder)
    with VoteFile(folder / VOTES_FILE, create=True) as votes:
        wanted = [*(f"voter {number}" for number in range(1, voters + 1)), *names]
        if wanted or not votes.voters():
            votes.enrol(wanted or ["voter 1"])
        everyone = votes.voters()
        machine = socket.gethostname()
        app = VotePages(votes, everyone, folder.resolve().name).app([machine, host])
        server = Server(app, (host, port), seconds=SECONDS, connections=CONNECTIONS, grace_s=GRACE_S)
        shown = machine if host in WILDCARDS else f"[{host}]" if ":" in host else host
        for line in _links(everyone, f"{shown}:{server.server_port}"):
            echo(line)
        open_questions, count = votes.standing()
        echo(f"waiting groups: {open_questions}; votes so far: {count}, in {votes.file}. Ctrl-C ends the page alone.")
        if not is_loopback(host):
            echo("This page is not encrypted: who shares the network can read along, links included.", err=True)
        server.serve_forever()


def _check_asks(folder: Path) -> None:
    """Refuse a run that has no reward of votes."""
    rewards = read_toml(folder / "run.toml").get("rewards")
    tables = rewards.values() if isinstance(rewards, dict) else ()
    if not any(isinstance(table, dict) and table.get("kind") == "votes" for table in tables):
        raise ConfigError(f'{folder}: it asks no people; a run that does has [rewards.NAME] with kind = "votes".')


def _links(voters: Sequence[Voter], address: str) -> list[str]:
    width = max(len(voter.name) for voter in voters)
    return [f"{voter.name:{width}}  http://{address}/{voter.token}/" for voter in voters]


def export_votes(run: str, file: Path) -> None:
    """Write the votes of a run as pairs of images into a parquet file.

    Raises:
        ConfigError: there is no such run, it has no votes, or the file's name does not end in .parquet.
        MissingExtra: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    if not re.search(r"\.parquet$", file.name):
        raise ConfigError(f"--export {file}: its name must end in .parquet.")
    folder = locate_run(run)
    with VoteFile(folder / VOTES_FILE) as votes:
        questions, pairs = export_preferences(votes, file)
    echo(f"{file}: {pairs} pairs of {questions} groups ({file.stat().st_size / 1e6:.1f} MB)")
