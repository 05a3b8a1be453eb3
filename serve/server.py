"""A server from its start to its end: uvicorn, with a drain before it goes down."""

import asyncio
import logging
import os
import signal
import socket
import ssl
from pathlib import Path
from types import FrameType

import uvicorn

from latentrt.runtime import LatentRTError
from latentrt.serve.app import create_app
from latentrt.serve.desk import Desk

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
"""How long a drained server still answers, so that clients fetch pictures that were just finished."""


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT, finishes what is there, refuses what comes, and ends; on a second one, ends at once."""

    def __init__(self, config: uvicorn.Config, desk: Desk):
        super().__init__(config)
        self._desk = desk
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal's handler."""
        if not self.started and not self.should_exit:
            self.should_exit = True
        elif self._loop is not None and self._drain is None and self.started:
            self._loop.call_soon_threadsafe(self._begin_drain, signal.Signals(sig).name)
        else:
            self.should_exit = self.force_exit = True

    def _begin_drain(self, name: str) -> None:
        if self._drain is None:
            what = "draining" if self._desk.models else "stopped while loading"
            log.info(what, extra={"signal": name, "requests": len(self._desk.live())})
            self._drain = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        had_work = bool(self._desk.live())
        await self._desk.drain()
        if had_work:
            await asyncio.sleep(LINGER_SECONDS)
        self.should_exit = True


async def run_server(
    desk: Desk,
    sockets: list[socket.socket],
    *,
    api_key: str | None = None,
    certificate: str | None = None,
    private_key: str | None = None,
    ready: asyncio.Event | None = None,
) -> None:
    """Serve a desk on bound sockets until a signal comes and what is there is done.

    Raises:
        LatentRTError: the bundles cannot be loaded.
    """
    config = uvicorn.Config(
        create_app(desk, api_key),
        log_config=None,
        access_log=False,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    server = DrainingServer(config, desk)
    serving = asyncio.ensure_future(server.serve(sockets))
    loaded = asyncio.ensure_future(desk.ready())
    await asyncio.wait({serving, loaded}, return_when=asyncio.FIRST_COMPLETED)
    if loaded.done() and loaded.exception() is not None:
        server.should_exit = True
        await serving
        error = loaded.exception()
        raise error if isinstance(error, LatentRTError) else LatentRTError(str(error))
    if loaded.done() and ready is not None:
        ready.set()
    loaded.cancel()
    await serving


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        LatentRTError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except UnicodeError as error:
        raise LatentRTError(f"--host {host}: not a host's name. Name another address") from error
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
        raise LatentRTError(f"--host {host} --port {port}: {why}. Name another address") from error


def check_tls(certificate: Path | None, private_key: Path | None) -> None:
    """Check that HTTPS can be served with these files.

    Raises:
        LatentRTError: one is missing, or no PEM file of its kind, or they do not belong together.
    """
    if certificate is None:
        return
    options = {"--tls-certificate": certificate} | ({"--tls-key": private_key} if private_key is not None else {})
    for option, file in options.items():
        try:
            file.read_bytes()
        except OSError as error:
            raise LatentRTError(f"{option} {file}: {error.strerror}") from error
    named = " ".join(f"{option} {file}" for option, file in options.items())
    encrypted: list[bool] = []

    def password() -> str:
        encrypted.append(True)
        return ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key, password)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        if encrypted:
            why = "the key is encrypted; give one without a passphrase"
        elif getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            why = "the key is not the certificate's"
        else:
            why = "not a certificate and its private key in PEM format"
        raise LatentRTError(f"{named}: {why}") from error
