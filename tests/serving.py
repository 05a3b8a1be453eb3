"""A server for tests: `latentrt serve` as a process of its own, and what its log says; or its front alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from latentrt.serve import desk as desk_module
from latentrt.serve.desk import Desk, DeskConfig
from latentrt.serve.messages import ModelNote, Ready
from latentrt.serve.worker import WorkerConfig

START_SECONDS = 120


class Served:
    """A running server: its address, its log, its metrics."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path):
        self.process = process
        self._log = log
        self.address = ""

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log so far."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def worker(self) -> int:
        """Process id of the worker that got ready last."""
        pids = [line["worker"] for line in self.log() if line["message"] == "ready"]
        return int(pids[-1])

    def metrics(self) -> dict[str, float]:
        """Every sample by name, those with labels as `name{value}`."""
        text = httpx.get(f"{self.address}/metrics", timeout=30).text
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(value for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found


@contextmanager
def served(folder: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    """Run `latentrt serve` until the `with` block is left; its log lies in `folder`."""
    code = "from latentrt.cli.main import main; main()"
    log = folder / "serve.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
    running = Served(process, log)
    killer = threading.Timer(START_SECONDS, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        killer.cancel()
        assert line.startswith("latentrt serves on http"), log.read_text(encoding="utf-8")[-3000:]
        running.address = line.split()[-1]
        yield running
    finally:
        killer.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def eventually(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until a condition holds, and give its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)
    return found


NOTE = ModelNote("m", "sdxl", 96, "0" * 64, "fp32", "onnxruntime", "cpu", "euler", 30, 5.0, False, {})


class Noting:
    """A supervisor without a worker: it notes what it is told."""

    def __init__(self, config: WorkerConfig, receive: Any, died: Any):
        self.sent: list[Any] = []
        self.stops: list[bool] = []
        self.renewed, self.killed = 0, 0
        self.receive, self.died, self.pid = receive, died, 1

    def start(self) -> None:
        pass

    def stop(self, at_once: bool = False) -> None:
        self.stops.append(at_once)

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def renew(self) -> None:
        self.sent.clear()
        self.renewed += 1

    def kill(self) -> None:
        self.killed += 1


def noting_desk(patch: pytest.MonkeyPatch, note: ModelNote = NOTE, **config: Any) -> Desk:
    """A desk that is ready to serve one model, on a supervisor without a worker."""
    patch.setattr(desk_module, "Supervisor", Noting)
    made = Desk(WorkerConfig({note.name: Path(note.name)}), DeskConfig(**config))
    made._receive(Ready((note,), 1))
    return made
