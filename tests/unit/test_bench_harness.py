"""Workers as real processes, rounds in turns, and what happens to those who fail."""

import io
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentrt.benchmarks import process
from latentrt.benchmarks.contenders import CONTENDERS, DEFAULT_PEERS, PEERS, check_installed, chosen_peers
from latentrt.benchmarks.context import Context, Options
from latentrt.benchmarks.harness import Entrant, Round, picture_task, rotated
from latentrt.benchmarks.peers import parse_pythons, peer_python
from latentrt.benchmarks.process import Worker, worker_environment
from latentrt.benchmarks.report.markdown import BEGIN, END, replace_between_markers
from latentrt.benchmarks.scenarios import Point, Scenario
from latentrt.benchmarks.suite import run_suite
from latentrt.benchmarks.workers import serve
from latentrt.benchmarks.workers.measure import Clock, HostStamp, peak_memory, reset_peak_memory, step_seconds
from latentrt.runtime.errors import BenchmarkError


class Answers:
    """A worker that is there to be called."""

    def add(self, one, other):
        return one + other

    def fail(self):
        raise ValueError("not today")


def test_calls_are_answered_line_by_line():
    calls = [
        {"call": "add", "with": {"one": 1, "other": 2}},
        {"call": "fail", "with": {}},
        {"call": "nothing", "with": {}},
    ]
    written = io.StringIO()
    serve.serve(Answers(), io.StringIO("".join(json.dumps(call) + "\n" for call in calls)), written)
    first, second, third = (json.loads(line) for line in written.getvalue().splitlines())
    assert first == {"value": 3}
    assert second["error"] == "ValueError: not today"
    assert "Traceback" in second["trace"]
    assert third["error"].startswith("AttributeError")


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    started = Worker(
        "diffusers", "workers.torch_pipeline:Diffusers", tmp_path_factory.mktemp("logs") / "one.log", threads=1
    )
    yield started
    started.close()
    started.close()


def test_a_worker_that_fails_stays_alive_and_logs_the_trace(worker):
    for _ in range(2):
        with pytest.raises(BenchmarkError, match=r"^diffusers: load: TypeError: .*missing"):
            worker.call("load")
    assert "Traceback" in worker.log.read_text()
    assert worker.call("begin") is None


def test_the_next_turn_begins_when_a_worker_is_idle(tmp_path, monkeypatch):
    """Its threads may spin on after the answer; only so long is waited for them."""
    busy = Worker("busy", "workers.measure:Clock", tmp_path / "busy.log")
    ticks = iter([5, 7, 9, 9])
    monkeypatch.setattr(process, "processor_ticks", lambda pid: next(ticks))
    busy.settle()
    assert list(ticks) == []
    growing = itertools.count()
    monkeypatch.setattr(process, "LONGEST_SPIN", 0.1)
    monkeypatch.setattr(process, "processor_ticks", lambda pid: next(growing))
    started = time.monotonic()
    busy.settle()
    assert 0.1 <= time.monotonic() - started < 1
    busy.close()


def test_processor_time_of_a_process():
    before = process.processor_ticks(os.getpid())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert not Path("/proc/self/stat").exists() or process.processor_ticks(os.getpid()) - before >= 5
    assert process.processor_ticks(1 << 30) == 0


def test_a_worker_that_dies(tmp_path):
    dead = Worker("nobody", "workers.nothing:Nobody", tmp_path / "dead.log")
    with pytest.raises(
        BenchmarkError, match=r"nobody: load: the process ended with 1: .*No module named .*See .*dead.log"
    ):
        dead.call("load")
    dead.close()


def test_a_worker_that_does_not_answer(tmp_path):
    slow = Worker("slow", "workers.torch_pipeline:Diffusers", tmp_path / "slow.log", timeout=0.01)
    with pytest.raises(BenchmarkError, match=r"slow: begin gave no answer in 0 s"):
        slow.call("begin")
    slow.close()


def test_a_worker_starts_where_latentrt_is_not_installed(tmp_path):
    """By its path, in an interpreter without site-packages: `-S` hides latentrt and everything else."""
    command = [sys.executable, "-S", str(serve.__file__), "workers.measure:Clock"]
    done = subprocess.run(command, input="", capture_output=True, text=True, cwd=tmp_path, check=False)
    # The module was found; the class wants arguments.
    assert "TypeError" in done.stderr
    assert "stamp" in done.stderr


def test_workers_have_no_network_and_the_threads_they_are_given():
    found = worker_environment(3)
    assert (found["HF_HUB_OFFLINE"], found["OMP_NUM_THREADS"]) == ("1", "3")


SCENARIO = Scenario("race", "?", "demo", (Point(8, 8, 2),), ("latentrt",), rounds=3)


class Scripted:
    """The calling end of a worker that answers from a list of walls, and fails at a call if told."""

    def __init__(self, name, log, order, fails_at=None):
        self.name, self.log, self.order, self.calls, self.fails_at = name, log, order, 0, fails_at

    def settle(self):
        self.order.append("idle")

    def call(self, call, picture=None, **_arguments):
        if call == "begin":
            return None
        self.calls += 1
        self.order.append(self.name)
        if self.calls == self.fails_at:
            raise BenchmarkError(f"{self.name}: sample: no more")
        if picture:
            Path(picture).write_bytes(b"")
        return {"wall": float(self.calls), "stages": {"text": 1.0}, "step": None, "memory": 5, "memory_device": None}


def race(tmp_path, **fails_at):
    order, failures = [], []
    loaded = {"memory": 7, "versions": {"x": "1"}, "notes": []}
    entrants = [
        Entrant(name, Scripted(name, tmp_path / f"{name}.log", order, fails_at.get(name)), 1.5, loaded)
        for name in ("latentrt", "diffusers", "optimum")
    ]
    point = SCENARIO.points[0]
    racing = Round(SCENARIO, point, picture_task(SCENARIO, point), tmp_path, failures.append)
    return racing.measure(entrants, tmp_path / "none.png"), order, failures


def test_rounds_are_interleaved_and_each_begins_with_another(tmp_path):
    rows, order, failures = race(tmp_path)
    assert failures == []
    assert order[1::2] == ["idle"] * 15, "a turn begins before the one before is over"
    order = order[::2]
    assert order[:6] == ["latentrt"] * 2 + ["diffusers"] * 2 + ["optimum"] * 2
    assert order[6:9] == ["latentrt", "diffusers", "optimum"]
    assert order[9:12] == ["diffusers", "optimum", "latentrt"]
    assert order[12:] == ["optimum", "latentrt", "diffusers"]
    assert [[sample.wall for sample in row.samples] for row in rows] == [[3, 4, 5]] * 3
    assert {(row.first, row.load, row.memory_load, row.memory_run) for row in rows} == {(1.0, 1.5, 7, 5)}


@pytest.mark.parametrize("call", [1, 2, 4])
def test_who_fails_drops_out_and_is_on_record(tmp_path, call):
    rows, _, failures = race(tmp_path, diffusers=call)
    assert [row.contender for row in rows] == ["latentrt", "optimum"]
    assert all(len(row.samples) == 3 for row in rows)
    ((failure),) = failures
    assert (failure.scenario, failure.contender, failure.message) == ("race", "diffusers", "diffusers: sample: no more")
    assert failure.log == "diffusers.log"


def test_the_order_of_rounds():
    assert rotated(list("abc"), 4) == ["b", "c", "a"]
    assert rotated([], 3) == []


def test_a_clock_sees_stages_and_steps():
    clock = Clock(HostStamp, lambda: None)
    clock.start()
    clock.mark("text")
    for _ in range(3):
        clock.step()
    found = clock.stop("decode")
    assert list(found["stages"]) == ["text", "denoise", "decode"]
    assert sum(found["stages"].values()) == pytest.approx(found["wall"], abs=1e-3)
    assert found["step"] >= 0
    clock.start()
    assert list(clock.stop("component")["stages"]) == ["component"]


def test_the_median_time_from_step_to_step():
    assert step_seconds([1.0, 2.0, 4.0, 5.0]) == 1
    assert step_seconds([1.0]) is None


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_begins_anew():
    held = bytearray(b"x" * 200_000_000)
    high = peak_memory()
    del held
    reset_peak_memory()
    assert peak_memory() < high - 100_000_000


def test_the_peers_that_are_chosen():
    assert chosen_peers(None) == DEFAULT_PEERS
    assert chosen_peers("all") == PEERS
    assert chosen_peers("none") == ()
    assert chosen_peers("optimum, diffusers") == ("optimum", "diffusers")
    with pytest.raises(
        BenchmarkError, match=r"--peers onediff: no such peer. The peers are diffusers, .*or all, or none"
    ):
        chosen_peers("diffusers,onediff")
    assert not any(CONTENDERS[name].backend for name in PEERS)


def test_a_peer_that_is_not_installed_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path))
    with pytest.raises(
        BenchmarkError, match=r"stable-fast: sfast is not installed. Get it with: a wheel for your torch"
    ):
        check_installed(CONTENDERS["stable-fast"])
    with pytest.raises(
        BenchmarkError, match=r"optimum: it needs an environment of its own.*latentrt bench --install-peers"
    ):
        peer_python(CONTENDERS["optimum"], {})
    check_installed(CONTENDERS["diffusers"])


def test_interpreters_of_peers():
    assert parse_pythons([f"optimum={sys.executable}"]) == {"optimum": Path(sys.executable)}
    with pytest.raises(BenchmarkError, match=r"--peer-python python: write NAME=PATH; names are optimum"):
        parse_pythons(["python"])
    with pytest.raises(BenchmarkError, match=r"--peer-python optimum=/no: /no is no file"):
        parse_pythons(["optimum=/no"])


# Files that cannot be written, and a run that is stopped


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    options = Options(out=tmp_path / "file" / "out", threads=1, peers=())
    with pytest.raises(BenchmarkError, match=r"results\.\w+: cannot be written \(Not a directory\)"):
        run_suite([], options, "", print)
    with pytest.raises(BenchmarkError, match=r"one\.log: cannot be written \(File exists\)"):
        Worker("one", "x", tmp_path / "file" / "one.log")


def test_a_python_that_is_not_there(tmp_path):
    with pytest.raises(BenchmarkError, match=r"/no/python: cannot be started \(No such file or directory\)"):
        Worker("one", "x", tmp_path / "one.log", python=Path("/no/python"))


def test_a_run_that_is_stopped_does_not_wait_for_its_workers(tmp_path):
    """A call may take an hour, and a worker's end is waited for."""
    context = Context(Options(out=tmp_path, threads=1, peers=()), lambda record: None, print)
    workers = []

    def stop():
        with context.worker("one", "workers.torch_pipeline:Diffusers", "scenario") as worker:
            workers.append(worker)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert workers[0]._process.returncode == -9


def test_a_full_disk_leaves_the_readme_as_it_was(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{BEGIN}\nold\n{END}\n")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BenchmarkError, match=r"--readme .*README\.md: cannot be written \(No space left on device\)"):
        replace_between_markers(readme, "new")
    assert "old" in readme.read_text()
    assert os.listdir(tmp_path) == ["README.md"]
