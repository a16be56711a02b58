"""Runs the app under uvicorn: listens, says where, and ends politely.

On SIGTERM or Ctrl-C no new connection is taken, answers that are being written are finished (for
`DRAIN_S` at most), and then the process ends.
"""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from plait.core.errors import ConfigError

DRAIN_S = 30


class Server(uvicorn.Server):
    """A uvicorn server that tells when it listens."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=DRAIN_S,
            server_header=False,
        )
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises: ConfigError if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror}; choose another, --port 0 takes a free "
            "one"
        ) from None
    listener.listen(2048)
    return listener
