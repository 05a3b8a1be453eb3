"""What a running scenario shares with the suite: options, where to write, and workers that end with their scenario."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentrt.benchmarks.contenders import CONTENDERS, Contender, check_installed
from latentrt.benchmarks.models import request_limits, static_copy, static_limits
from latentrt.benchmarks.peers import peer_python
from latentrt.benchmarks.process import Worker
from latentrt.benchmarks.results import Failure, NotRun, Peaks, Record
from latentrt.benchmarks.scenarios import Scenario
from latentrt.runtime.backends.registry import runnable_targets
from latentrt.runtime.errors import BenchmarkError

PICTURES = "pictures"
LOGS = "logs"


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. `threads`: cores that every contender may use. `peers`: those that take part.

    `rehearse`: the scenarios are GPU scenarios in small; only the command that repeats them depends on it.
    """

    out: Path
    threads: int
    peers: tuple[str, ...]
    peer_pythons: Mapping[str, Path] = field(default_factory=dict)
    rounds: int | None = None
    rehearse: bool = False


@dataclass(slots=True)
class Context:
    """One run. `write` takes every record; `say` is told what goes on."""

    options: Options
    write: Callable[[Record], None]
    say: Callable[[str], None]
    _peaks: dict[tuple[str, str], Peaks] = field(default_factory=dict)

    @contextmanager
    def worker(self, scenario: str, name: str, kind: str, python: Path | None = None) -> Iterator[Worker]:
        """A worker process for the length of a block; its log goes to the run's folder."""
        log = self.options.out / LOGS / f"{scenario}-{name}.log"
        worker = Worker(name, kind, log, python=python, threads=self.options.threads)
        try:
            yield worker
        finally:
            worker.close()

    def peaks(self, device: str, precision: str) -> Peaks:
        """The machine's peaks, measured once per run, device and precision."""
        key = (device, precision)
        if key not in self._peaks:
            self.say(f"measuring this machine's peaks ({device}, {precision})")
            with self.worker("machine", f"peaks-{device}-{precision}", "workers.peaks:MachinePeaks") as worker:
                found = worker.call("measure", device=device, precision=precision, threads=self.options.threads)
            self._peaks[key] = Peaks(device, **found)
            self.write(self._peaks[key])
        return self._peaks[key]

    def entrants(self, scenario: Scenario, *, building: bool = False) -> Iterator[Contender]:
        """The contenders that are to run; records why the others do not.

        A peer that was asked for and is not there is a failure; a form of latentrt whose library is not installed is
        not run.
        """
        for name in scenario.contenders:
            contender = CONTENDERS[name]
            if contender.is_peer and name not in self.options.peers:
                self.write(NotRun(scenario.name, name, f"not asked for; ask with --peers {name}"))
            elif scenario.device not in contender.devices and not building:
                self.write(NotRun(scenario.name, name, f"does not run on {scenario.device}"))
            elif scenario.device == "cuda" and not building and not _has_engines(contender):
                self.write(NotRun(scenario.name, name, f"{contender.backend} has no engines for this GPU"))
            elif missing := self._missing(contender):
                if contender.is_peer:
                    self.fail(scenario, name, BenchmarkError(f"{name}: {missing}"))
                else:
                    self.write(NotRun(scenario.name, name, missing))
            else:
                yield contender

    def _missing(self, contender: Contender) -> str:
        """What a contender lacks, and how to get it; nothing where it can run."""
        try:
            check_installed(contender)
            if contender.own_environment:
                peer_python(contender, self.options.peer_pythons)
        except BenchmarkError as error:
            return str(error).removeprefix(f"{contender.name}: ")
        return ""

    def fail(self, scenario: Scenario, contender: str, error: Exception, log: str = "") -> None:
        """Record that something which should have run did not."""
        self.say(f"{scenario.name}: {error}")
        self.write(Failure(scenario.name, contender, str(error), log))

    def bundle(self, prepare: Worker, scenario: Scenario) -> dict[str, Any]:
        """The scenario's bundle: `path`, `seconds`, `memory`, and the `limits` it serves."""
        limits = request_limits(scenario)
        answer: dict[str, Any] = prepare.call(
            "bundle",
            model=scenario.model,
            precision=scenario.precision,
            limits=limits,
            threads=self.options.threads,
        )
        return answer | {"limits": limits}

    def build(
        self, prepare: Worker, scenario: Scenario, contender: Contender, bundle: Mapping[str, Any], force: bool = False
    ) -> dict[str, Any]:
        """One contender's engines: `seconds`, `memory`, `components`, the `path` of the bundle and its `limits`."""
        path, limits = Path(bundle["path"]), bundle["limits"]
        if contender.static:
            limits = static_limits(scenario)
            path = static_copy(path, limits)
        answer: dict[str, Any] = prepare.call(
            "build", bundle=str(path), backend=contender.backend, device=scenario.device, limits=limits, force=force
        )
        return answer | {"path": str(path), "limits": limits}


def _has_engines(contender: Contender) -> bool:
    """Whether the first GPU runs a contender's engines: TensorRT-RTX has none for data-centre cards."""
    return contender.is_peer or bool(runnable_targets(contender.backend, "cuda:0"))
