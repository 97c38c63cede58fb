"""Refuses the network: Python runs this file at start-up wherever its folder is on PYTHONPATH.

Loopback and local (AF_UNIX) sockets stay open. The error is no OSError, so that no retry or fallback swallows it.
"""

import ipaddress
import socket
from typing import Any


class NetworkRefused(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(host: object) -> bool:
    if host is None or host in ("", "localhost", b"localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(host: object) -> None:
    raise NetworkRefused(f"tests run without a network, and something asked for {host!r}")


def _guard(name: str, place: int) -> None:
    """Wrap a socket method whose argument number ``place`` is an address (the last one, for sendto)."""
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, *args: Any) -> Any:
        address = args[place]
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            _refuse(address)
        return original(self, *args)

    setattr(socket.socket, name, guarded)


def install() -> None:
    """Close the doors, once."""
    if getattr(socket, "grpaint_closed", False):
        return
    for name, place in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
        _guard(name, place)
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        return resolve(host, *args, **options) if _is_local(host) else _refuse(host)

    socket.getaddrinfo = getaddrinfo
    socket.grpaint_closed = True


install()
