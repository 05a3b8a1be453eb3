"""Starts the worker process, passes messages, and replaces a worker that dies."""

import logging
import multiprocessing
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from latentrt.serve.messages import FromWorker, LoadFailed, Ready, Stop, ToWorker
from latentrt.serve.worker import WorkerConfig, run_worker

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""How long a worker that was told to stop may take before it is killed."""

LONGEST_PAUSE = 30.0
"""Seconds, at most, between a death and the next start; the pause doubles as long as no worker gets ready."""


class Supervisor:
    """One worker process at a time. `receive` and `died` are called in a thread of the supervisor's own.

    `died` is called when a worker has ended unasked, with its exit code. The next one is started after `renew`, which
    whoever sends calls when it knows what is lost.
    """

    def __init__(self, config: WorkerConfig, receive: Callable[[FromWorker], None], died: Callable[[int | None], None]):
        self._config = config
        self._receive = receive
        self._died = died
        self._context = multiprocessing.get_context("spawn")
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._outbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._renewed = threading.Event()
        self._pause = 0.0
        self._thread = threading.Thread(target=self._run, name="latentrt-supervisor", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id of the worker, if one runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the first worker, without waiting for it."""
        self._thread.start()

    def send(self, message: ToWorker) -> None:
        """Pass a message on, without waiting. What a dying worker has not read is lost with it."""
        self._outbox.put(message)

    def renew(self) -> None:
        """Drop what the dead worker has not read. What is sent from now on goes to the next one."""
        self._outbox = queue.SimpleQueue()
        self._renewed.set()

    def kill(self) -> None:
        """End a worker that hangs; another one is started."""
        if self.pid is not None and self._process is not None:
            self._process.kill()

    def stop(self, at_once: bool = False) -> None:
        """End the worker for good; returns when it and the threads have ended.

        `at_once`: do not let it end by itself, since one that loads listens only when it is done.
        """
        self._stopping.set()
        self._renewed.set()
        self._outbox.put(Stop())
        if at_once:
            self.kill()
        self._thread.join(STOP_SECONDS)
        self.kill()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            exit_code = self._run_one()
            if self._stopping.is_set():
                return
            self._renewed.clear()
            self._died(exit_code)
            self._renewed.wait()
            self._stopping.wait(self._pause)
            self._pause = min(max(1.0, 2 * self._pause), LONGEST_PAUSE)

    def _run_one(self) -> int | None:
        """One worker from its start to its end."""
        ours, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=run_worker, args=(theirs, self._config), name="latentrt-worker", daemon=True
        )
        self._process.start()
        theirs.close()
        if self._stopping.is_set():  # `stop` came before there was something to end
            self._process.kill()
        outbox = self._outbox
        sender = threading.Thread(target=_pass_on, args=(outbox, ours), name="latentrt-sender", daemon=True)
        sender.start()
        try:
            while True:
                message: FromWorker = ours.recv()
                if isinstance(message, Ready):
                    self._pause = 0.0
                if isinstance(message, LoadFailed):
                    log.error("the worker cannot start: %s", message.message)
                self._receive(message)
        except (EOFError, OSError):
            pass
        finally:
            self._process.join()
            outbox.put(None)
            sender.join()
            ours.close()
        exit_code: int | None = self._process.exitcode
        return exit_code


def _pass_on(outbox: "queue.SimpleQueue[ToWorker | None]", connection: Connection) -> None:
    while (message := outbox.get()) is not None:
        try:
            connection.send(message)
        except OSError:
            return  # the worker is gone; the reader sees it, too
