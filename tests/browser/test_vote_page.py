"""The page of votes in a browser: two people at once by mouse, touch and keys, and runs that learn from such voters."""

import contextlib
import json
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import tiny_runs
from grpaint.commands.vote.server import VotePages
from grpaint.images.encoding import png_bytes
from grpaint.measures.intervals import paired_difference
from grpaint.storage.ballots import Question, Voter
from grpaint.storage.votes import VOTES_FILE, VoteFile
from grpaint.web.server import Server
from open_pages import FOREIGN, OpenPage, assert_fits, assert_foreign_is_text
from voting import BrowserVoter

NAMES = ["Ann", FOREIGN[:60]]


class Ballot:
    """A file of votes with its server in a thread; ``url(voter)`` is a voter's address."""

    def __init__(self, folder: Path) -> None:
        self.votes = VoteFile(folder / VOTES_FILE, create=True)
        self.voters = self.votes.enrol(NAMES)
        self.of_server = VoteFile(self.votes.file)
        app = VotePages(self.of_server, self.voters, "🎨 <b>run").app([])
        self.server = Server(app, ("127.0.0.1", 0), seconds=30, connections=50, grace_s=1)

    def url(self, voter: Voter) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{voter.token}/"


@pytest.fixture
def ballot(tmp_path) -> Iterator[Ballot]:
    ballot = Ballot(tmp_path)
    thread = threading.Thread(target=ballot.server.serve_forever)
    thread.start()
    yield ballot
    ballot.server.stop()
    thread.join(30)
    ballot.votes.close()
    ballot.of_server.close()


def shades(key: str, count: int = 4, side: int = 24, caption: str = "a red wall") -> Question:
    """Images of which each is redder than the one before."""
    images = [Image.new("RGB", (side, side), (40 + 200 * place // count, 40, 60)) for place in range(count)]
    images[0].putpixel((0, 0), (len(key), 0, 0))
    return Question(key, caption, [png_bytes(image) for image in images], min(3, count - 1))


@pytest.fixture
def open_ballot(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a voter's address; at the end no page has raised an error or asked for anything but its own server."""
    opened: list[OpenPage] = []

    def open_address(url: str, **options: Any) -> Page:
        opened.append(OpenPage(browser, url, **options))
        return opened[-1].page

    yield open_address
    for one in opened:
        one.close()
    for one in opened:
        assert [error for error in one.errors if "status of 409" not in error] == []  # a vote that was refused
        assert one.foreign_requests() == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (390, "light")])
def test_the_page_fits_and_everyone_can_read_it(width, scheme, ballot, open_ballot, assert_accessible):
    ballot.votes.ask([shades("a", caption=FOREIGN)])
    page = open_ballot(ballot.url(ballot.voters[1]), width=width, scheme=scheme, touch=width == 390)
    page.locator(".choice").first.click()
    expect(page.locator(".choice").first).to_have_attribute("aria-label", "Image 1, 1st")
    assert_fits(page)
    assert_foreign_is_text(page)
    expect(page.locator(".vote-head strong")).to_have_text(NAMES[1])
    expect(page.locator(".run")).to_have_text("🎨 <b>run")
    assert_accessible(page)
    page.locator(".zoom").first.click()
    expect(page.locator("#large")).to_be_visible()
    assert_fits(page)
    assert_accessible(page)
    page.locator("#close").click()
    page.locator("#send").click()
    expect(page.locator("#idle h1")).to_have_text("Nothing to vote on now")
    assert_fits(page)
    assert_accessible(page)


def test_two_people_vote_at_once_by_touch_mouse_and_keys(ballot, open_ballot):
    pages = [
        open_ballot(ballot.url(ballot.voters[0]), width=390, touch=True),
        open_ballot(ballot.url(ballot.voters[1])),
    ]
    for page in pages:
        expect(page.locator("#idle")).to_be_visible()
    ballot.votes.ask([shades("a"), shades("bb"), shades("pair", count=2)])  # which appear by themselves
    ann, ben = pages
    expect(ann.locator("#ballot")).to_be_visible()
    expect(ben.locator("#ballot")).to_be_visible()
    assert (
        ann.locator("#images img").first.get_attribute("src").partition("-")[0]
        != (ben.locator("#images img").first.get_attribute("src").partition("-")[0])
    )  # they begin at different groups
    keys = BrowserVoter(ben, contrary=True)
    while ann.locator("#ballot").is_visible():
        number = ann.locator("#standing").inner_text()
        ann.locator(".choice").nth(0).tap()
        ann.locator(".choice").nth(0).tap()  # taken back
        expect(ann.locator("#send")).to_be_disabled()
        ann.locator(".choice").nth(1).tap()
        ann.locator(".zoom").nth(0).tap()
        ann.locator("#pick").tap()
        ann.locator("#close").tap()
        ann.locator("#send").tap()
        expect(ann.locator("#standing")).not_to_have_text(number) if "last" not in number else expect(
            ann.locator("#idle")
        ).to_be_visible()
        if keys.count < 3:
            keys.vote()
    expect(ben.locator("#idle")).to_be_visible()
    for key, count in (("a", 4), ("bb", 4), ("pair", 2)):
        first, second = ballot.votes.rankings(key)
        assert (first.voter, second.voter) == tuple(NAMES)
        assert len(first.picks) == min(2, count - 1)
        assert list(second.picks) == list(range(count - 1))  # the least red first


def test_keys_undo_and_say_that_there_is_no_difference(ballot, open_ballot):
    ballot.votes.ask([shades("a")])
    page = open_ballot(ballot.url(ballot.voters[0]))
    expect(page.locator(".choice")).to_have_count(4)
    for key, ranks in (("2", ["1", "1st", "3", "4"]), ("4", ["1", "1st", "3", "2nd"]), ("2", ["1", "2", "3", "1st"]),
                       ("Backspace", ["1", "2", "3", "4"]), ("Enter", ["1", "2", "3", "4"])):  # fmt: skip
        page.keyboard.press(key)
        assert page.locator(".choice .key").all_inner_texts() == ranks
    page.locator(".choice").nth(2).focus()
    page.keyboard.press("Enter")  # presses the button that has the focus
    expect(page.locator(".choice").nth(2)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Backspace")
    page.keyboard.press("0")
    expect(page.locator("#idle")).to_be_visible()
    assert [ranking.picks for ranking in ballot.votes.rankings("a")] == [()]


def test_a_closed_question_is_said_and_the_next_one_shown(ballot, open_ballot):
    ballot.votes.ask([shades("a"), shades("bb")])
    page = open_ballot(ballot.url(ballot.voters[0]))
    expect(page.locator("#ballot")).to_be_visible()
    number = int(re.search(r"images/(\d+)-", page.locator("#images img").first.get_attribute("src"))[1])
    ballot.votes.settle(["a" if number == 1 else "bb"], 0)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("This question is closed")
    expect(page.locator("#standing")).to_have_text("The last group for now")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#idle")).to_be_visible()
    expect(page.locator("#message")).to_be_hidden()


@contextlib.contextmanager
def served(run: str, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """``grpaint vote RUN`` as a process; gives it, and the link of each voter."""
    process = tiny_runs.process("vote", run, "--port", "0", *words)
    links = {}
    while (line := process.stdout.readline()) and "waiting groups" not in line:
        name, _, link = line.strip().rpartition("  ")
        links[name.strip()] = link
    try:
        assert line, process.stderr.read()
        yield process, links
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def _train_with_voters(open_ballot: Callable[..., Page], method: str, sets: Sequence[str]) -> list[BrowserVoter]:
    """Train ``runs/it`` with three voters, of whom the last ranks the other way; return them."""
    training = tiny_runs.process("train", method, "--name", "it", sets=[PEOPLE, *sets])
    while not Path(f"runs/it/{VOTES_FILE}").exists():
        assert training.poll() is None, training.communicate()
        threading.Event().wait(0.1)
    with served("it", "--voters", "3") as (_, links):
        voters = [BrowserVoter(open_ballot(link), contrary=name == "voter 3") for name, link in links.items()]
        while training.poll() is None:
            if not sum(voter.vote() for voter in voters):
                voters[0].page.wait_for_timeout(50)
        for voter in voters:
            voter.page.close()
    assert training.returncode == 0, training.communicate()
    return voters


PEOPLE = 'rewards={people={kind="votes",votes=3},red={kind="red.py:red",weight=0}}'
TRAINING = [
    "train.group_size=4",
    "train.evaluations=0",
    "train.schedule=constant",
    "evaluate.guided=[]",
    "evaluate.pictures=0",
    "device=cpu",
    "threads=1",
]
RED = "def red(images, prompts):\n    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))\n"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("red.py").write_text(RED)
    return tmp_path


def test_a_run_waits_for_the_page_and_uses_its_votes(here, open_ballot):
    sets = [*tiny_runs.TINY, "train.iterations=2", "train.prompts=2"]
    voters = _train_with_voters(open_ballot, "flow-grpo-fast", sets)
    assert [voter.count for voter in voters] == [4, 4, 4]
    for line in tiny_runs.lines(Path("runs/it/metrics.jsonl")):
        assert (line["cost/people/groups"], line["cost/people/votes"]) == (2, 6)
        assert line["reward/people/std"] > 0
    with VoteFile(Path("runs/it") / VOTES_FILE) as votes:
        assert votes.standing() == (0, 12)
        for _, (first, second, contrary) in votes.answered():
            assert first.picks == second.picks
            assert contrary.picks != first.picks


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_three_voters_of_whom_one_is_contrary_make_images_redder(seed, here, open_ballot):
    sets = ["train.iterations=20", "train.prompts=4", f"train.seed={seed}", "train.learning_rate=5e-4"]
    sets += ["train.ema=0.5", "evaluate.every=20", "evaluate.prompts=128"]
    voters = _train_with_voters(open_ballot, "awm", [*TRAINING, *sets])
    assert [voter.count for voter in voters] == [80, 80, 80]
    before, *_, after = tiny_runs.lines(Path("runs/it/evaluations.jsonl"))
    scores = [line["reward/red_by_prompt"] for line in (before, after)]
    mean, (low, high) = paired_difference(*scores)
    strict = [line["strict"] for line in (before, after)]
    print(json.dumps({"seed": seed, "redder by": mean, "95%": [low, high], "strict": strict}))  # noqa: T201
    assert low > 0
