"""Starts and calls a worker process, and notices when it dies."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from latentrt.benchmarks.workers import serve
from latentrt.runtime.errors import BenchmarkError, told_as

MODULE = serve.__name__

TIMEOUT = 3600.0
"""Seconds that one call may take: torch.compile at full size takes many minutes."""

QUIET, LONGEST_SPIN = 0.03, 3.0
"""A process is idle after QUIET seconds without processor time; nobody waits for that longer than LONGEST_SPIN."""


class Worker:
    """One worker process. `name` appears in messages; stderr goes to `log`; `timeout`: seconds for one call."""

    def __init__(
        self,
        name: str,
        kind: str,
        log: Path,
        *,
        python: Path | None = None,
        threads: int = 0,
        timeout: float = TIMEOUT,
    ):
        self.name = name
        self.log = log
        self.timeout = timeout
        with told_as(BenchmarkError, log, "written"):
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log: IO[str] = log.open("w", encoding="utf-8")
        # latentrt is not installed in another environment, so the file is started by its path.
        command = [str(python), str(serve.__file__), kind] if python else [sys.executable, "-m", MODULE, kind]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=worker_environment(threads),
            )
        except OSError as error:
            self._log.close()
            raise BenchmarkError(f"{command[0]}: cannot be started ({error.strerror})") from error
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        stream = self._process.stdout
        for line in stream or ():
            self._answers.put(line)
        self._answers.put("")

    def call(self, call: str, **arguments: Any) -> Any:
        """Call a method in the worker and wait for its result.

        Raises:
            BenchmarkError: the method failed, the process ended, or there was no answer in time.
        """
        stream = self._process.stdin
        try:
            if stream is None:
                raise OSError("no pipe")
            stream.write(json.dumps({"call": call, "with": arguments}) + "\n")
            stream.flush()
            line = self._answers.get(timeout=self.timeout)
        except OSError:
            line = ""
        except queue.Empty:
            self.close(kill=True)
            raise BenchmarkError(
                f"{self.name}: {call} gave no answer in {self.timeout:.0f} s. See {self.log}"
            ) from None
        if not line:
            raise BenchmarkError(f"{self.name}: {call}: {self._death()}")
        answer = json.loads(line)
        if "error" in answer:
            self._log.write(answer["trace"])
            self._log.flush()
            raise BenchmarkError(f"{self.name}: {call}: {answer['error']}")
        return answer["value"]

    def settle(self) -> None:
        """Wait until the process uses no more processor time: its libraries' threads may spin on after a call."""
        deadline = time.monotonic() + LONGEST_SPIN
        before = -1
        while before != (now := processor_ticks(self._process.pid)) and time.monotonic() < deadline:
            before = now
            time.sleep(QUIET)

    def _death(self) -> str:
        """Why the process ended, according to the last line of its log."""
        code = self._process.wait()
        self._log.flush()
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        return f"the process ended with {code}: {last}. See {self.log}"

    def close(self, kill: bool = False) -> None:
        """End the process. Closing twice is allowed."""
        if kill:
            self._process.kill()
        if self._process.stdin and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except OSError:
                kill = True
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()


def processor_ticks(process: int) -> int:
    """Processor time that a process has used, in ticks of about 10 ms; 0 if the system does not report it."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def worker_environment(threads: int) -> Mapping[str, str]:
    """The variables of this process, plus those that prevent downloads and set the number of threads."""
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if threads:
        own |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**os.environ, **own}
