"""Calls that concern a whole GPU, such as loading a session: CUDA refuses them while any stream is captured.

They and captures keep out of each other's way, in the whole process: such a call waits for captures under way, which
take milliseconds, and a capture is put off while such a call, which may take seconds, is under way.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_changed = threading.Condition()
_captures = 0
_calls = 0


@contextmanager
def device_wide() -> Iterator[None]:
    """No stream is captured in a `with` block."""
    global _calls
    with _changed:
        _calls += 1
        _changed.wait_for(lambda: not _captures)
    try:
        yield
    finally:
        with _changed:
            _calls -= 1


@contextmanager
def capture_turn() -> Iterator[bool]:
    """Whether a stream may be captured in a `with` block."""
    global _captures
    with _changed:
        allowed = not _calls
        _captures += allowed
    try:
        yield allowed
    finally:
        with _changed:
            _captures -= allowed
            _changed.notify_all()
