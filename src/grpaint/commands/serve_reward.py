"""``grpaint reward serve``: serve a reward over HTTP for runs on other machines or in other environments."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from grpaint.core.errors import ConfigError
from grpaint.core.policy import Reward
from grpaint.learn.external_rewards import connect_rewards
from grpaint.learn.table import score_images
from grpaint.recipe.build import build
from grpaint.recipe.config import override
from grpaint.report.console import echo
from grpaint.rewards.elsewhere.limits import Limits
from grpaint.rewards.elsewhere.server import RewardServer, identity
from grpaint.web.access import is_loopback, new_token, read_token


@dataclass(frozen=True)
class Service:
    """The flags of ``grpaint reward serve``: address, where the token is, and limits.

    ``max_mib``: the largest request. ``timeout``: seconds for a request to arrive, and again to be scored, up to a
    day. ``batch``: images of waiting requests that are scored together (0: none). ``threads``: 0 leaves them to
    PyTorch.
    """

    host: str
    port: int
    token_env: str | None
    token_file: Path | None
    max_mib: int
    timeout: float
    batch: int
    threads: int

    def limits(self) -> Limits:
        """Return the limits of a request.

        Raises:
            ConfigError: a number is out of range.
        """
        ranges = self.max_mib >= 1 and 0 < self.timeout <= 86_400 and 0 <= self.port < 65536
        if not ranges or self.batch < 0 or self.threads < 0:
            raise ConfigError("reward serve: --max-mib, --timeout (seconds, up to a day), --port: out of range.")
        size = self.max_mib << 20  # of uint8 pixels: a quarter of it, as fp32, is what they take
        pixels, memory = max(Limits.pixels, size // 4), max(Limits.memory, 16 * size)
        return Limits(size, self.timeout, self.batch, pixels=pixels, memory=memory)


def run(kind: str, sets: Sequence[str], service: Service) -> None:
    """Serve the reward ``kind`` with its own settings ``sets`` until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: the reward, the address, the token or a limit is refused.
        RewardError: a reward in another process does not start.
    """
    limits = service.limits()
    if service.threads:
        torch.set_num_threads(service.threads)
    token, generated = token_of(service.host, service.token_env, service.token_file)
    reward, settings = open_reward(kind, sets)
    about = {"name": kind, "version": version("grpaint"), "identity": identity(reward, settings)}

    def log(line: str) -> None:
        echo(line, err=True)

    with connect_rewards({kind: reward}, log):
        score = partial(score_images, kind, reward)
        server = RewardServer((service.host, service.port), score, about, token, limits, log)
        if generated:
            echo(f"token {token}")
        echo(f"serving {kind} on http://{service.host}:{server.server_port} identity {about['identity']}")
        server.serve_forever()


def token_of(host: str, variable: str | None, file: Path | None) -> tuple[str, bool]:
    """Return the token that requests must carry, and whether it was generated here.

    Raises:
        ConfigError: the named token is missing or too short, or a host other than loopback would have none.
    """
    token = read_token("reward serve", variable, file)
    if token is None and not is_loopback(host):
        raise ConfigError(f"--host {host}: others can reach that; name a token of yours, --token-env or --token-file.")
    return token or new_token(), token is None


def open_reward(kind: str, sets: Sequence[str]) -> tuple[Reward, dict[str, Any]]:
    """Build the reward ``kind`` with its own settings; return it, and all of them.

    Raises:
        ConfigError: it cannot be built or served.
    """
    if any(item.partition("=")[0].strip() in ("kind", "weight") for item in sets):
        raise ConfigError(
            "reward serve: --set takes the reward's own settings; kind is the argument, weight the run's."
        )
    reward, settings = build(Reward, override({"kind": kind}, sets), "reward")
    if getattr(reward, "needs_group", False):
        raise ConfigError(
            f"{kind}: it compares the images of a prompt, and a server does not receive them together; name it in "
            "the run itself, or serve it pointwise."
        )
    return reward, settings
