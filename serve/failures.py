"""What clients are told of the errors of their requests."""

import logging
import re

from latentrt.runtime import LatentRTError, NumericsError, RequestError
from latentrt.serve.messages import FailureKind

log = logging.getLogger(__name__)

REMEDY = re.compile(r"\s*Rebuild with: .*", re.DOTALL)
"""The command, with paths, by which whoever runs the server may change what it serves."""


def kind_of(error: Exception) -> FailureKind:
    """Whose fault an error is."""
    match error:
        case NumericsError():
            return "numerics"
        case RequestError():
            return "request"
    return "worker"


def told(error: Exception, id: str) -> str:
    """What the client is told. What nobody expected is for the log, and so are remedies with the server's paths."""
    if isinstance(error, LatentRTError):
        said = REMEDY.sub("", str(error))
        if said != str(error):
            log.info("request %s: %s", id, error)
        return said
    log.error("request %s: unexpected error", id, exc_info=error)
    return f"internal error ({type(error).__name__}); the server's log has more"
