"""Errors as answers: the status of each, and the shape that the API's clients expect."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from latentrt.runtime import LatentRTError, RequestError
from latentrt.runtime.request.settings import SETTINGS
from latentrt.serve.messages import Failed
from latentrt.serve.refusals import QueueFullError, UnavailableError

log = logging.getLogger(__name__)

KINDS = {"request": 400, "numerics": 422, "deadline": 408, "worker": 500}
"""Status by the kind of a failure."""

TYPES = {400: "invalid_request_error", 401: "invalid_request_error", 429: "requests"}
"""OpenAI's types by status; others are `server_error`, or `invalid_request_error` below 500."""

CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded", 404: "not_found", 413: "too_large", 408: "timeout"}


class FailedError(LatentRTError):
    """A request that the worker could not draw."""

    def __init__(self, failed: Failed):
        super().__init__(failed.message)
        self.status = KINDS[failed.kind]


class ParameterError(RequestError):
    """One parameter of OpenAI's API is wrong. `code`: OpenAI's word for how."""

    def __init__(self, parameter: str, message: str, code: str = "invalid_value"):
        super().__init__(message)
        self.parameter = parameter
        self.code = code


class NotFoundError(LatentRTError):
    """There is no such thing."""


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape, which is also ours."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def setting_in(message: str) -> str | None:
    """The setting that a message is about: it begins with its name, as in "steps 0: must be …"."""
    match = re.match(r"(\w+)(?= [^:]*:|:)", message)
    return match[1] if match and (match[1] in SETTINGS or match[1] in ("prompt", "model")) else None


def status_of(error: Exception) -> int:
    """The status that an error is answered with."""
    match error:
        case FailedError():
            return error.status
        case NotFoundError():
            return 404
        case QueueFullError():
            return 429
        case UnavailableError():
            return 503
        case RequestError():
            return 400
        case HTTPException():
            return error.status_code
    return 500


def answer(path: str, error: Exception) -> JSONResponse:
    """An error as a response, in the shape of the API that the path belongs to."""
    status = status_of(error)
    message = str(error.detail) if isinstance(error, HTTPException) else str(error)
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, QueueFullError | UnavailableError):
        headers["Retry-After"] = str(error.seconds)
    if path.startswith("/sdapi/"):
        name = "HTTPException" if isinstance(error, LatentRTError | HTTPException) else type(error).__name__
        body = {"error": name, "detail": message, "body": "", "errors": ""}
    else:
        parameter = getattr(error, "parameter", None) or (setting_in(message) if status == 400 else None)
        if path.startswith("/v1/images/") and parameter in ("width", "height"):
            parameter = "size"  # OpenAI's name of both
        body = error_body(status, message, parameter, getattr(error, "code", None))
    return JSONResponse(body, status, headers)


def _wrong_body(found: Sequence[Any], content_type: str) -> tuple[str, str | None]:
    """What is wrong with a request that does not fit its schema, and with which of its parameters."""
    first = found[0]
    where, *inner = first["loc"]
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {first['ctx']['error']} at character {inner[0]}", None
    if where == "body" and not inner:
        if not re.match(r"application/(?:[\w.-]+\+)?json\b", content_type, re.IGNORECASE):
            return "the body is not read as JSON; send Content-Type: application/json", None
        return "the body must be a JSON object", None
    name = str(inner[0] if inner else where)
    same = [entry["msg"] for entry in found if entry["loc"][:2] == first["loc"][:2]]
    return f"{name}: {', or: '.join(dict.fromkeys(same))}", name


def validation_answer(path: str, error: RequestValidationError, content_type: str = "") -> JSONResponse:
    """A body that does not fit the schema: 422 with a list for A1111's clients, as FastAPI itself; else 400."""
    found = [{"loc": entry["loc"], "msg": entry["msg"], "type": entry["type"]} for entry in error.errors()]
    if path.startswith("/sdapi/"):
        return JSONResponse({"detail": found}, 422)
    return JSONResponse(error_body(400, *_wrong_body(error.errors(), content_type)), 400)


def add_error_answers(app: FastAPI) -> None:
    """Answer every error in the shape of its API."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return answer(request.url.path, error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_answer(request.url.path, error, request.headers.get("content-type", ""))

    async def gone(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({}, 499)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("unexpected error", exc_info=error)
        return answer(request.url.path, RuntimeError("internal error; the log has more"))

    app.add_exception_handler(LatentRTError, ours)
    app.add_exception_handler(HTTPException, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(Exception, unexpected)
