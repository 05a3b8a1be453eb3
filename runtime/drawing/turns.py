"""Turns: the threads that share one pipeline are served one after the other."""

from collections.abc import Callable
from threading import Lock, get_ident
from typing import ParamSpec, TypeVar

from latentrt.runtime.errors import RequestError

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


class Turns:
    """One turn at a time, in the order in which threads ask. A public call of a pipeline is one turn.

    From inside a turn its thread can have no other: what `progress` calls would change what the outer call works on.
    """

    def __init__(self) -> None:
        self._line = Lock()
        self._turn = Lock()
        self._thread: int | None = None
        self._closed = False

    def check(self) -> None:
        """Raise `RequestError` if no turn can be had: from inside one, or after the last one."""
        self._refuse_inner()
        self._refuse_closed()

    def take(self, work: Callable[Parameters, Value], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        """Wait for this thread's turn, and do `work` in it.

        Raises:
            RequestError: this thread is inside a turn already, or the last turn is over.
        """

        def unless_closed() -> Value:
            self._refuse_closed()
            return work(*args, **kwargs)

        return self.take_even_closed(unless_closed)

    def take_last(self, work: Callable[[], None]) -> None:
        """Do `work` in the last turn of all; a second last turn does nothing."""

        def once() -> None:
            if not self._closed:
                self._closed = True
                work()

        self.take_even_closed(once)

    def take_even_closed(self, work: Callable[[], Value]) -> Value:
        """As `take`, and after the last turn too."""
        self._refuse_inner()
        thread = get_ident()
        try:
            with self._line:  # only one waits for the lock itself, so whoever just had it cannot overtake
                self._turn.acquire()
                self._thread = thread
            return work()
        finally:
            if self._thread == thread:
                self._thread = None
                self._turn.release()

    def _refuse_inner(self) -> None:
        if self._thread == get_ident():
            raise RequestError(
                "this pipeline is at work, and was called from inside that work, such as from `progress`. Call it when "
                "the outer call has returned, or load a second pipeline for this"
            )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RequestError("this pipeline is closed. Load its bundle again, with Pipeline.load")
