"""Serve the runs of a folder to a browser of this machine until SIGTERM or Ctrl-C."""

from pathlib import Path
from urllib.parse import quote

from grpaint.commands.view.shelf import Shelf
from grpaint.commands.view.site import view_app
from grpaint.core.errors import ConfigError
from grpaint.report.console import echo
from grpaint.run.record import is_run
from grpaint.storage.cache import cache_folder
from grpaint.web.access import read_token, stored_token
from grpaint.web.server import Server

HOST = "127.0.0.1"
SECONDS = 15.0  # for a request's header; its answer may take four times as long to be read
CONNECTIONS = 64
GRACE_S = 1.0


def view(runs: Path, port: int, token_file: Path | None) -> None:
    """Serve the runs of a folder and print the address.

    Without ``token_file`` the token is one of this user's, made at the first call and kept in the cache folder: pages
    that are open go on when the server is started again.

    Raises:
        ConfigError: there is no such folder, the port is taken, or the token is refused.
    """
    if is_run(runs):
        raise ConfigError(f"{runs}: one run; name the folder that holds it, {runs.resolve().parent}.")
    if not runs.is_dir():
        raise ConfigError(f"{runs}: no such folder; name the one that holds run folders (--runs of grpaint train).")
    if not 0 <= port < 65536:
        raise ConfigError(f"--port {port}: from 1 to 65535, or 0 for a free one.")
    token = read_token("view", None, token_file) or stored_token(cache_folder("view") / "token")
    if quote(token, safe="") != token:
        raise ConfigError(f"--token-file {token_file}: only letters, digits and - . _ ~ fit into an address.")
    shelf = Shelf(runs)
    shelf.rows()  # read before anybody waits for them
    try:
        server = Server(view_app(shelf, token), (HOST, port), seconds=SECONDS, connections=CONNECTIONS, grace_s=GRACE_S)
    except ConfigError as error:
        raise ConfigError(f"{error} If another grpaint view runs there, stop it; --port 0 takes a free port.") from None
    echo(f"http://{HOST}:{server.server_port}/{token}/")
    echo(f"shows the runs in {runs} until Ctrl-C; whoever has the address can read them")
    server.serve_forever()
