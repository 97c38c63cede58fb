"""The addresses of ``grpaint view``: the table, the page and pictures of each run, several side by side."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from grpaint.commands.view.shelf import Shelf
from grpaint.report.pages.run import run_data, run_page
from grpaint.report.pages.runs import runs_page
from grpaint.report.pages.side_by_side import side_by_side_data, side_by_side_page
from grpaint.report.pages.template import finite
from grpaint.run.record import read_record
from grpaint.web.access import private_app
from grpaint.web.answers import page_answer, picture_answer, tagged

MOST_COMPARED = 8
T = TypeVar("T")


def view_app(shelf: Shelf, token: str) -> Starlette:
    """Return the application that shows the runs of a shelf to who has the token."""
    site = _Site(shelf)
    routes = [
        Route("/", site.table),
        Route("/runs.json", site.rows),
        Route("/run/{name}/", site.run),
        Route("/run/{name}/data.json", site.run_data),
        Route("/run/{name}/samples/{picture:path}", site.picture),
        Route("/compare", site.compare),
        Route("/compare.json", site.compare_data),
    ]
    return private_app({token: ""}, routes)


class _Site:
    """Answers requests; what reads files does so in threads, two at a time."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._threads = anyio.CapacityLimiter(2)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    async def table(self, request: Request) -> Response:
        """Return the table of runs."""
        return page_answer(
            await self._in_thread(lambda: runs_page(self.shelf.rows(), str(self.shelf.folder.resolve())))
        )

    async def rows(self, request: Request) -> Response:
        """Return the rows of the table, which all pages poll."""
        rows = await self._in_thread(self.shelf.rows)
        return tagged(request, _json({"rows": rows}), "application/json")

    async def run(self, request: Request) -> Response:
        """Return the page of a run."""
        return page_answer(await self._in_thread(partial(self._run, request.path_params["name"], "page")))

    async def run_data(self, request: Request) -> Response:
        """Return what the page of a run draws, as it is now."""
        text = await self._in_thread(partial(self._run, request.path_params["name"], "data"))
        return tagged(request, text.encode(), "application/json")

    def _run(self, name: str, what: str) -> str:
        folder, stamp = self._folder(name)

        def make() -> str:
            record = read_record(folder)
            return run_page(record, stamp=stamp) if what == "page" else _json(run_data(record)).decode()

        return self.shelf.made((name, what), stamp, make)

    def _folder(self, name: str) -> tuple[Path, str]:
        folder, stamp = self.shelf.folder_of(name), self.shelf.stamp(name)
        if folder is None or stamp is None:
            raise HTTPException(404, "There is no such run.")
        return folder, stamp

    async def picture(self, request: Request) -> Response:
        """Return a picture of a run."""
        folder, _ = await self._in_thread(partial(self._folder, request.path_params["name"]))
        name = request.path_params["picture"]
        return await self._in_thread(partial(picture_answer, request, folder / "samples", name))

    async def compare(self, request: Request) -> Response:
        """Return the page of several runs side by side."""
        return page_answer(await self._in_thread(partial(self._compare, request.query_params.getlist("run"), "page")))

    async def compare_data(self, request: Request) -> Response:
        """Return what the page of several runs draws, as it is now."""
        text = await self._in_thread(partial(self._compare, request.query_params.getlist("run"), "data"))
        return tagged(request, text.encode(), "application/json")

    def _compare(self, names: list[str], what: str) -> str:
        names = list(dict.fromkeys(names))
        if not 2 <= len(names) <= MOST_COMPARED:
            raise HTTPException(400, f"Name 2 to {MOST_COMPARED} runs: compare?run=ONE&run=OTHER.")
        folders = [self._folder(name) for name in names]
        stamps = [stamp for _, stamp in folders]

        def make() -> str:
            records = [read_record(folder) for folder, _ in folders]
            if what == "page":
                return side_by_side_page(records, dict(zip(names, stamps, strict=True)))
            return _json(side_by_side_data(records)).decode()

        return self.shelf.made((*names, what), " ".join(stamps), make)


def _json(value: object) -> bytes:
    return json.dumps(finite(value), separators=(",", ":")).encode()
