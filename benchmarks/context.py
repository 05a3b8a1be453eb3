"""What the scenarios of a run share: options, where results go, and worker processes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentrt.benchmarks.contenders import CONTENDERS, Contender, check_installed
from latentrt.benchmarks.models import request_limits, static_copy, static_limits
from latentrt.benchmarks.peers import peer_python
from latentrt.benchmarks.process import Worker
from latentrt.benchmarks.results import NOT_ASKED_FOR, Failure, NotRun, Peaks, Record
from latentrt.benchmarks.scenarios import Scenario
from latentrt.runtime.backends.registry import runnable_targets
from latentrt.runtime.errors import BenchmarkError

PICTURES = "pictures"
LOGS = "logs"


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run. `threads`: cores that each contender may use. `peers`: the peers that take part.

    `rehearse`: the scenarios are small versions of GPU scenarios; used only in the command that repeats them.
    """

    out: Path
    threads: int
    peers: tuple[str, ...]
    peer_pythons: Mapping[str, Path] = field(default_factory=dict)
    rounds: int | None = None
    rehearse: bool = False


@dataclass(slots=True)
class Context:
    """One run. `write` is called with every record, `say` with messages on what is going on."""

    options: Options
    write: Callable[[Record], None]
    say: Callable[[str], None]
    _peaks: dict[tuple[str, str], Peaks] = field(default_factory=dict)

    @contextmanager
    def worker(self, scenario: str, name: str, kind: str, python: Path | None = None) -> Iterator[Worker]:
        """A worker process that ends with the block; its log goes to the run's folder."""
        log = self.options.out / LOGS / f"{scenario}-{name}.log"
        worker = Worker(name, kind, log, python=python, threads=self.options.threads)
        try:
            yield worker
        except BaseException:
            worker.close(kill=True)  # it may be in the middle of a call that takes an hour
            raise
        worker.close()

    def peaks(self, device: str, precision: str) -> Peaks:
        """The machine's peaks, measured once per run for each device and precision."""
        key = (device, precision)
        if key not in self._peaks:
            self.say(f"measuring this machine's peaks ({device}, {precision})")
            with self.worker("machine", f"peaks-{device}-{precision}", "workers.peaks:MachinePeaks") as worker:
                found = worker.call("measure", device=device, precision=precision, threads=self.options.threads)
            self._peaks[key] = Peaks(device, **found)
            self.write(self._peaks[key])
        return self._peaks[key]

    def entrants(self, scenario: Scenario, *, building: bool = False) -> Iterator[Contender]:
        """The contenders that will run; for each of the others, record why it does not.

        A peer that was asked for and is missing is a failure; latentrt on a backend whose library is not installed is
        merely not run.
        """
        for name in scenario.contenders:
            contender = CONTENDERS[name]
            if contender.is_peer and name not in self.options.peers:
                self.write(NotRun(scenario.name, name, f"{NOT_ASKED_FOR}; ask with --peers {name}"))
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
        """What a contender lacks and how to get it, or an empty string."""
        try:
            check_installed(contender)
            if contender.own_environment:
                peer_python(contender, self.options.peer_pythons)
        except BenchmarkError as error:
            return str(error).removeprefix(f"{contender.name}: ")
        return ""

    def fail(self, scenario: Scenario, contender: str, error: Exception, log: str = "") -> None:
        """Record a failure."""
        self.say(f"{scenario.name}: {error}")
        self.write(Failure(scenario.name, contender, str(error), log))

    def bundle(self, prepare: Worker, scenario: Scenario) -> dict[str, Any]:
        """The scenario's bundle: its `path`, the `limits` it serves, and `seconds` and `memory` of the export."""
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
        """One contender's engines: `path` and `limits` of their bundle, and what `Prepare.build` returns."""
        path, limits = Path(bundle["path"]), bundle["limits"]
        if contender.static:
            limits = static_limits(scenario)
            path = static_copy(path, limits)
        answer: dict[str, Any] = prepare.call(
            "build", bundle=str(path), backend=contender.backend, device=scenario.device, limits=limits, force=force
        )
        return answer | {"path": str(path), "limits": limits}


def _has_engines(contender: Contender) -> bool:
    """Whether a contender can run on the first GPU: TensorRT-RTX does not support data-centre cards."""
    return contender.is_peer or bool(runnable_targets(contender.backend, "cuda:0"))
