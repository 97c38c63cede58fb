"""The server of the page of votes: each voter's next question, its images, and his picks."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from grpaint.core.bounds import whole_number
from grpaint.core.errors import ConfigError
from grpaint.report.pages.vote import vote_page
from grpaint.storage.ballots import OpenQuestion, Voter, VoteRefused
from grpaint.storage.reading import decode_text, parse_object
from grpaint.storage.votes import VoteFile
from grpaint.web.access import private_app
from grpaint.web.answers import JsonAnswer, page_answer, tagged
from grpaint.web.server import body_length, read_body

MOST_BODY = 1 << 16  # bytes of a vote
T = TypeVar("T")


class VotePages:
    """The pages of the voters of a run, ``/TOKEN/`` for each; ``run`` is its name."""

    def __init__(self, votes: VoteFile, voters: Sequence[Voter], run: str) -> None:
        self._votes, self._run = votes, run
        self._voters = {voter.token: voter for voter in voters}
        self._one_at_a_time = anyio.CapacityLimiter(1)

    def app(self, hosts: Sequence[str]) -> Starlette:
        """Return the application; ``hosts`` are names of this machine beside loopback."""
        routes = [
            Route("/", self._page),
            Route("/question", self._question),
            Route("/images/{question}-{place}.png", self._image),
            Route("/vote", self._vote, methods=["POST"]),
        ]
        return private_app({token: token for token in self._voters}, routes, hosts)

    def _voter(self, request: Request) -> Voter:
        return self._voters[request.state.visitor]

    async def _from_file(self, call: Callable[[], T]) -> T:
        """Return what a call of the file of votes returns.

        Raises:
            HTTPException: the file cannot be used now.
        """
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._one_at_a_time)
        except ConfigError as error:
            raise HTTPException(503, str(error)) from error

    async def _page(self, request: Request) -> Response:
        return page_answer(vote_page(self._run, self._voter(request).name))

    async def _question(self, request: Request) -> Response:
        content = await self._next(self._voter(request))
        return tagged(request, json.dumps(content).encode(), "application/json")

    async def _next(self, voter: Voter) -> dict[str, Any]:
        question = await self._from_file(partial(self._votes.next_question, voter.number))
        return {"question": question and _as_seen(question, voter)}

    async def _image(self, request: Request) -> Response:
        numbers = [whole_number(request.path_params[name]) for name in ("question", "place")]
        question, place = (-1 if number is None else number for number in numbers)
        image = await self._from_file(partial(self._votes.image, question, place))
        if image is None:
            raise HTTPException(404, "no such image is in question")
        return Response(image, media_type="image/png")

    async def _vote(self, request: Request) -> Response:
        body_length(request, MOST_BODY)
        try:
            question, picks = _read_vote(await read_body(request))
        except ConfigError as error:
            return JsonAnswer(400, {"refused": str(error)})
        voter, refusal = self._voter(request), None
        try:
            await self._from_file(partial(self._votes.vote, voter.number, question, picks))
        except VoteRefused as error:
            refusal = str(error)
        return JsonAnswer(409 if refusal else 200, {"refused": refusal} | await self._next(voter))


def _as_seen(question: OpenQuestion, voter: Voter) -> dict[str, Any]:
    """Return a question as JSON; each voter sees its images in an order of his own, since places draw votes too."""
    places = sorted(
        range(question.images),
        key=lambda place: hashlib.sha256(f"{voter.token} {question.key} {place}".encode()).digest(),
    )
    return {
        "number": question.number,
        "caption": question.caption,
        "choices": question.choices,
        "left": question.left,
        "places": places,
    }


def _read_vote(body: bytes) -> tuple[int, list[int]]:
    """Return the number of the question and the picks of a vote.

    Raises:
        ConfigError: it is none.
    """
    vote = parse_object(decode_text(body, "the vote"), "the vote")
    question, picks = vote.get("question"), vote.get("picks")
    numbers = [question, *picks] if isinstance(picks, list) else [None]
    if vote.keys() != {"question", "picks"} or not all(
        type(number) is int and 0 <= number < 2**53 for number in numbers
    ):
        raise ConfigError('the vote: it must be {"question": a number, "picks": [numbers of images, best first]}.')
    return vote["question"], vote["picks"]
