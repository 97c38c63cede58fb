"""``grpaint train`` and ``grpaint sft``."""

from grpaint.commands.train.command import run
from grpaint.commands.train.running import open_loop, start

__all__ = ["open_loop", "run", "start"]
