"""The guard that keeps tests from the network, in this process and in its children."""

import socket
import subprocess
import sys

import pytest

ELSEWHERE = ("192.0.2.1", 9)  # an address reserved for documentation


def test_connections_are_refused() -> None:
    with socket.socket() as client:
        for call in (client.connect, client.connect_ex):
            with pytest.raises(RuntimeError, match=r"without a network.*192\.0\.2\.1"):
                call(ELSEWHERE)


def test_datagrams_are_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client, pytest.raises(RuntimeError, match="without a network"):
        client.sendto(b"x", ELSEWHERE)


def test_names_are_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match="without a network"):
        socket.getaddrinfo("example.org", 443)


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        assert client.getpeername() == server.getsockname()


def test_local_sockets_work() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"x")
        assert other.recv(1) == b"x"


def test_child_processes_are_guarded_too() -> None:
    code = f"import socket; socket.socket().connect({ELSEWHERE})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "NetworkRefused" in child.stderr
