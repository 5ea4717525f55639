"""`moeplan app`: the dashboard."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import LAST_PORT
from app.errors import InputError

MAIN = Path(__file__).parent.parent / "main.py"


def app(
    port: Annotated[int, typer.Option(min=1, max=LAST_PORT, help="TCP port.")] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
) -> None:
    """Start the dashboard and serve it until Ctrl-C."""
    _check_address(host, port)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(MAIN), *flags(host, port, no_browser)])


def flags(host: str, port: int, no_browser: bool) -> list[str]:
    """Streamlit's options: our address, nothing sent or fetched elsewhere, no reload on edits."""
    return [
        f"--server.address={host}",
        f"--server.port={port}",
        f"--server.headless={str(no_browser).lower()}",
        "--browser.gatherUsageStats=false",
        "--server.fileWatcherType=none",
        "--client.toolbarMode=viewer",
    ]


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before Streamlit starts."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host"
        ) from None
