"""A server whose addresses begin with a token: who is let in, what leaks, and which clients it outlives."""

import contextlib
import http.client
import socket
import threading
import time

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from grpaint.core.errors import ConfigError
from grpaint.web.access import HEADERS, private_app, read_token, stored_token
from grpaint.web.answers import picture_answer, tagged
from grpaint.web.server import Server, body_length, read_body

TOKEN, OTHER = "sesame-sesame-sesame", "simsim-simsim-simsim"
BIG = bytes(32 << 20)


@contextlib.contextmanager
def serving(folder, **limits):
    """The port of a server in a thread: ``/TOKEN/`` says who asks, ``/TOKEN/files/..`` has pictures."""

    async def who(request: Request) -> Response:
        return tagged(request, request.state.visitor.encode(), "text/plain")

    async def picture(request: Request) -> Response:
        return picture_answer(request, folder, request.path_params["name"])

    async def echo(request: Request) -> Response:
        body_length(request, 10)
        return Response(await read_body(request))

    async def big(request: Request) -> Response:
        return Response(BIG)

    routes = [
        Route("/", who),
        Route("/files/{name:path}", picture),
        Route("/echo", echo, methods=["POST"]),
        Route("/big", big),
    ]
    app = private_app({TOKEN: "ann", OTHER: "bob"}, routes)
    server = Server(app, ("127.0.0.1", 0), **{"seconds": 10, "connections": 32, "grace_s": 1} | limits)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def ask(port, path, *, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a picture, and around it what must stay outside."""
    root = tmp_path_factory.mktemp("web")
    folder = root / "inside"
    folder.mkdir()
    (root / "secret.webp").write_bytes(b"secret")
    (folder / "a.webp").write_bytes(b"a picture")
    (folder / "b.txt").write_bytes(b"secret")
    (folder / "link.webp").symlink_to(root / "secret.webp")
    (folder / "up").symlink_to(root)
    return folder


@pytest.fixture(scope="module")
def port(folder):
    with serving(folder) as port:
        yield port


def test_a_token_opens_its_visitors_page_alone(port):
    assert ask(port, f"/{TOKEN}/")[:2] == (200, b"ann")
    assert ask(port, f"/{OTHER}/")[:2] == (200, b"bob")


@pytest.mark.parametrize(
    "path",
    ["/", f"/{TOKEN}", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", "//", f"//{TOKEN}/", "/files/a.webp", "/%c3%a9/", "/%ff%00/"],
)
def test_without_the_token_everything_is_refused_alike(path, port):
    status, body, headers = ask(port, path)
    assert status == 403
    assert body == ask(port, "/elsewhere")[1]
    answer = body.decode() + str(headers)
    assert TOKEN not in answer
    assert OTHER not in answer


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "localhost.evil:80", "127.0.0.2"])
def test_a_host_that_is_not_this_machine_is_refused(host, port):
    assert ask(port, f"/{TOKEN}/", Host=host)[0] in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "127.0.0.1:9", "[::1]:80"])
def test_loopback_by_any_name_and_port_is_this_machine(host, port):
    assert ask(port, f"/{TOKEN}/", Host=host)[0] == 200  # a tunnel has a port of its own


@pytest.mark.parametrize("path", [f"/{TOKEN}/", f"/{TOKEN}/nothing", "/", f"/{TOKEN}/files/a.webp"])
def test_every_answer_has_the_headers_that_let_nothing_out(path, port):
    headers = ask(port, path)[2]
    for name, value in HEADERS.items():
        assert headers[name] == value or (name == "Cache-Control" and headers[name] == "private, no-cache")
    assert "Set-Cookie" not in headers
    assert "Access-Control-Allow-Origin" not in headers


def test_an_answer_that_the_browser_has_is_not_sent_again(port):
    status, body, headers = ask(port, f"/{TOKEN}/files/a.webp")
    assert (status, body, headers["Content-Type"]) == (200, b"a picture", "image/webp")
    status, body, _ = ask(port, f"/{TOKEN}/files/a.webp", If_None_Match=headers["ETag"])
    assert (status, body) == (304, b"")


@pytest.mark.parametrize(
    "name",
    ["../secret.webp", "%2e%2e/secret.webp", "..%2fsecret.webp", "up/secret.webp", "link.webp", "b.txt", "%00.webp",
     "", "a.webp/../../secret.webp", "/etc/passwd", "%2fetc/passwd.webp", "x" * 3000 + ".webp"],
)  # fmt: skip
def test_only_pictures_below_the_folder_are_served(name, port):
    status, body, _ = ask(port, f"/{TOKEN}/files/{name}")
    assert (status, body) == (404, b"no such picture")


def test_a_picture_that_is_gone_is_no_error(port):
    assert ask(port, f"/{TOKEN}/files/gone.webp")[:2] == (204, b"")


def test_what_a_page_does_not_offer_is_refused(port):
    assert ask(port, f"/{TOKEN}/", method="POST", body=b"x")[0] == 405
    assert ask(port, f"/{TOKEN}/", method="DELETE")[0] == 405
    assert ask(port, f"/{TOKEN}/echo", method="POST", body=b"1234567890")[:2] == (200, b"1234567890")
    assert ask(port, f"/{TOKEN}/echo", method="POST", body=b"12345678901")[0] == 413
    assert ask(port, f"/{TOKEN}/echo", method="POST", body=iter([b"1"]))[0] == 411


def test_clients_that_say_or_read_nothing_are_outlived(folder):
    with serving(folder, seconds=0.5) as port, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(200)]
        for place, client in enumerate(clients):
            with contextlib.suppress(OSError):  # refused already
                if place < 16:
                    client.sendall(f"GET /{TOKEN}/big HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())  # and never reads
                elif place < 24:
                    client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, body, _ = ask(port, f"/{TOKEN}/")
                if status == 200:
                    break
                assert status == 503
            assert time.monotonic() < end
        assert body == b"ann"


def test_a_server_ends_though_a_client_never_reads(folder):
    with serving(folder, seconds=60) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"GET /{TOKEN}/big HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert ask(port, f"/{TOKEN}/")[0] == 200
        start = time.monotonic()
    assert time.monotonic() - start < 20


def test_an_address_that_is_taken_is_one_line(port):
    with pytest.raises(ConfigError, match=rf"--host 127\.0\.0\.1 --port {port}: Address already in use\."):
        Server(private_app({}, []), ("127.0.0.1", port), seconds=1, connections=1, grace_s=1)


def test_a_token_of_ones_own_is_read_or_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MINE", TOKEN)
    file = tmp_path / "token"
    file.write_text("short")
    assert read_token("view", "MINE", None) == TOKEN
    assert read_token("view", None, None) is None
    with pytest.raises(ConfigError, match=r"--token-file .*token: that file holds no token"):
        read_token("view", None, file)
    with pytest.raises(ConfigError, match="view: --token-env and --token-file: give one of them"):
        read_token("view", "MINE", file)


def test_a_token_that_is_made_is_kept_and_only_its_owner_reads_it(tmp_path):
    file = tmp_path / "new/token"
    token = stored_token(file)
    assert stored_token(file) == token
    assert len(token) == 43
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("")
    with pytest.raises(ConfigError, match="holds no token; remove it"):
        stored_token(file)
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        stored_token(file / "below")
