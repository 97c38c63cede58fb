"""A child process that ends with its parent, however suddenly that ends."""

import os
import signal
import threading


def stop_with_parent() -> None:
    """Ask this process to stop by SIGTERM, as a run does that saves first, when its standard input ends.

    The parent gives it one end of a pipe as standard input and writes nothing: the pipe ends with the parent.
    """
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):
        pass
    with open(os.devnull, "wb") as null:  # nobody reads what it prints
        for descriptor in (1, 2):
            os.dup2(null.fileno(), descriptor)
    os.kill(os.getpid(), signal.SIGTERM)
