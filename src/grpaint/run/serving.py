"""What ``grpaint serve-reward`` is made of, apart from its words."""

import ipaddress
import os
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.core.policy import Elsewhere, Reward
from grpaint.learn.table import ask
from grpaint.rewards.server import Limits, RewardServer, identity
from grpaint.run.build import build
from grpaint.run.config import override


def token_of(host: str, variable: str | None, file: Path | None) -> tuple[str, bool]:
    """The token that requests must show, and whether it was made here.

    Raises:
        ConfigError: where a named one is not there, or another host than loopback is to be served without one.
    """
    if variable and file:
        raise ConfigError("serve-reward: --token-env and --token-file: give one of them.")
    if variable:
        token = os.environ.get(variable, "").strip()
        where = f"--token-env {variable}: that environment variable"
    elif file:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {file}: cannot be read ({error}).") from error
        where = f"--token-file {file}: that file"
    elif _is_loopback(host):
        return secrets.token_urlsafe(32), True
    else:
        raise ConfigError(f"--host {host}: others can reach that; name a token of yours, --token-env or --token-file.")
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{where} holds no token; 16 or more printable ASCII characters are wanted.")
    return token, False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_server(
    kind: str,
    sets: Sequence[str],
    address: tuple[str, int],
    token: str,
    limits: Limits,
    log: Callable[[str], None],
) -> tuple[RewardServer, Callable[[], None]]:
    """A server that listens, and what to call when it has ended.

    Raises:
        ConfigError: for a reward or an address that cannot be had.
        RewardError: where a reward in another process does not start.
    """
    if any(item.partition("=")[0].strip() in ("kind", "weight") for item in sets):
        raise ConfigError(
            "serve-reward: --set takes the reward's own settings; kind is the argument, weight the run's."
        )
    reward, settings = build(Reward, override({"kind": kind}, sets), "reward")
    if getattr(reward, "needs_group", False):
        raise ConfigError(
            f"{kind}: it compares the images of a prompt, which a server is not asked about together; name it in the "
            "run itself, or serve it pointwise."
        )
    stop: Callable[[], None] = lambda: None  # noqa: E731
    if isinstance(reward, Elsewhere):
        stop = reward.stop
        for note in reward.start():
            log(note)
    about = {"name": kind, "version": version("grpaint"), "identity": identity(reward, settings)}
    try:
        return RewardServer(address, partial(ask, kind, reward), about, token, limits, log), stop
    except OSError as error:
        stop()
        reason = (error.strerror or str(error)).partition(" (while")[0]  # the library repeats the address
        raise ConfigError(f"--host {address[0]} --port {address[1]}: {reason}.") from error


def serve(server: RewardServer, stop: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then let requests under way end."""
    try:
        server.serve_forever()
    finally:
        stop()
