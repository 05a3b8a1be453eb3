"""Logs of a server: one line of JSON each, or plain text."""

import json
import logging
import traceback
from contextvars import ContextVar

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""Attributes that every record has; the others were given as `extra`."""


http_request: ContextVar[str | None] = ContextVar("http_request", default=None)
"""The id of the HTTP request that is being handled."""


class JsonLines(logging.Formatter):
    """Every record as one line of JSON, with the fields that it was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name not in STANDARD}
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


def configure_server_logging(as_json: bool) -> None:
    """Log to stderr: what concerns requests, and other libraries' warnings."""
    handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("latentrt").setLevel(logging.INFO)
