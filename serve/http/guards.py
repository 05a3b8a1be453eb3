"""What stands before every API: request ids and the access log, the key, the size of bodies. Plain ASGI."""

import base64
import binascii
import hmac
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentrt.serve.http.errors import answer
from latentrt.serve.logs import http_request

log = logging.getLogger("latentrt.serve.access")

OPEN = re.compile(
    r"/healthz|/readyz|/v1/requests/[0-9a-f]{24}/pictures/\d+"
    r"|/(?!v1/|sdapi/)(?:[\w./-]+\.(?:html|js|css|svg|png|ico|webmanifest|woff2))?"
)
"""Paths that need no key: probes, pictures, whose address is a secret by itself, and the files of a page."""


class RequestIds:
    """Gives every HTTP request an id, which the answer and the log have too, and logs it when it is answered."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        id = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else secrets.token_hex(12)
        started, status = time.monotonic(), 0
        http_request.set(id)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            fields: dict[str, Any] = {"http_request": id, "method": scope["method"], "path": scope["path"]}
            fields |= {"status": status, "seconds": round(time.monotonic() - started, 4)}
            log.info("%s %s %s", scope["method"], scope["path"], status, extra=fields)


class KeyCheck:
    """Refuses requests without the key, as `Authorization: Bearer KEY`, or as the password of HTTP Basic."""

    def __init__(self, app: ASGIApp, key: str):
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and not OPEN.fullmatch(scope["path"]):
            given = _given_key(Headers(scope=scope).get("authorization", ""))
            if not hmac.compare_digest(given, self._key):  # takes as long whatever is given
                error = _unauthorized(scope["path"])
                await error(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _unauthorized(path: str) -> Any:
    return answer(path, HTTPException(401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"}))


def _given_key(header: str) -> bytes:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")  # as headers are decoded
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class BodyLimit:
    """Refuses bodies of more bytes than allowed, announced or not, without reading on."""

    def __init__(self, app: ASGIApp, most: int):
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > self._most:
            await answer(scope["path"], self._error())(scope, receive, send)
            return
        seen = 0

        async def receive_counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise self._error()
            return message

        await self._app(scope, receive_counted, send)

    def _error(self) -> HTTPException:
        return HTTPException(413, f"the body is too large; this server takes up to {self._most} bytes")
