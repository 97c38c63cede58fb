"""The page of a run as it goes on: what goes wrong with it is a line, and a link in the folder leads nowhere."""

import pytest

import grpaint.run.page
from grpaint.core.errors import ProcessesEnded
from grpaint.run.folder import RunFolder
from grpaint.run.page import PAGE, PageWriter, write_page
from report.runs import write_run
from tiny_runs import command


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (KeyError("a\nb"), "KeyError: 'a\\nb'"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_a_page_that_cannot_be_written_is_one_line_and_the_run_goes_on(tmp_path, monkeypatch, fault, reason):
    def fail(_):
        raise fault

    monkeypatch.setattr(grpaint.run.page, "run_page", fail)
    lines: list[str] = []
    writer = PageWriter(write_run(tmp_path / "run"), lines.append)
    writer.write()
    writer.write()
    (line,) = lines
    assert line.startswith(f"{PAGE} could not be written ({reason.strip()}); the run goes on")
    assert "\n" not in line


def test_writing_takes_a_hundredth_of_the_run_at_most(tmp_path, monkeypatch):
    now, cost = [0.0], [0.5]
    monkeypatch.setattr(grpaint.run.page.time, "monotonic", lambda: now[0])
    written = []

    def write(folder):
        now[0] += cost[0]
        written.append(now[0])

    monkeypatch.setattr(grpaint.run.page, "write_page", write)
    writer = PageWriter(tmp_path, print)
    writer.write()
    for _ in range(1000):
        now[0] += 1.0
        writer.refresh(evaluated=False)
    assert len(written) == pytest.approx(1000 * 0.01 / 0.5, abs=2)
    count = len(written)
    writer.refresh(evaluated=True)  # quick, so each evaluation is on the page
    writer.refresh(evaluated=True)
    assert len(written) == count + 2
    cost[0] = 2.0
    writer.refresh(evaluated=True)
    writer.refresh(evaluated=True)
    assert len(written) == count + 3


def test_a_link_in_the_place_of_the_page_is_replaced(tmp_path):
    run, elsewhere = write_run(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (run / PAGE).symlink_to(elsewhere)
    lines: list[str] = []
    PageWriter(run, lines.append).write()
    assert lines == []
    assert elsewhere.read_text() == "mine"
    assert (run / PAGE).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_end_that_another_rank_has_recorded_is_on_the_page(tmp_path):
    from grpaint.commands.train.running import _end_of_others

    run = write_run(tmp_path / "run", status="running")
    page = PageWriter(run, print)
    _end_of_others(RunFolder(run), page, "out of paint on rank 1", 1)
    assert not (run / PAGE).exists()  # none was written before
    page.write()
    _end_of_others(RunFolder(run), page, "out of paint on rank 1", 1)
    assert str(ProcessesEnded("out of paint on rank 1", 1)) in (run / PAGE).read_text(encoding="utf-8")
    assert RunFolder(run).facts()["status"] == "failed"


def test_a_folder_whose_name_is_no_utf8_has_a_page(tmp_path):
    run = write_run(tmp_path / "a\udcff")
    assert "<h1>a\ufffd</h1>" in write_page(run).read_text(encoding="utf-8")
    assert command("report", str(run)).code == 0
