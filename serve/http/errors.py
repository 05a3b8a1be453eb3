"""Errors as answers: the status of each, and the shape that the API's clients expect."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from latentrt.runtime import LatentRTError, RequestError
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
        body = error_body(status, message, getattr(error, "parameter", None), getattr(error, "code", None))
    return JSONResponse(body, status, headers)


def validation_answer(path: str, error: RequestValidationError) -> JSONResponse:
    """A body that does not fit the schema: 422 with a list for A1111's clients, as FastAPI itself; else 400."""
    found = [{"loc": entry["loc"], "msg": entry["msg"], "type": entry["type"]} for entry in error.errors()]
    if path.startswith("/sdapi/"):
        return JSONResponse({"detail": found}, 422)
    where = ".".join(str(part) for part in found[0]["loc"] if part != "body") if found else ""
    message = f"{where}: {found[0]['msg']}" if where else found[0]["msg"] if found else "the body is wrong"
    return JSONResponse(error_body(400, message, where or None), 400)


def add_error_answers(app: FastAPI) -> None:
    """Answer every error in the shape of its API."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return answer(request.url.path, error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_answer(request.url.path, error)

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
