"""`latentrt bench` as people type it: lists, refusals, failures, kept runs; one short race from end to end."""

import json
import shutil
from dataclasses import replace

import pytest
from bench_results import finished, records, row, write_run
from command_line import run_main

from latentrt.benchmarks.models import bundle_folder, request_limits
from latentrt.benchmarks.report.markdown import BEGIN, END
from latentrt.benchmarks.results import BuildRow, Failure, Finished, HostRow, Row, StageWork, read
from latentrt.benchmarks.scenarios import SUITES, named


def test_the_list_names_every_scenario(capsys):
    run = run_main(capsys, "bench", "--list")
    assert run.exit == 0
    assert run.result == {"scenarios": {suite: [one.name for one in found] for suite, found in SUITES.items()}}
    quick = run_main(capsys, "bench", "--quick", "--list")
    assert quick.result == {"scenarios": {"chosen": [one.name for one in SUITES["quick"]]}}


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (("--quick", "--gpu"), 2, "--quick and --gpu name two suites"),
        (("--rehearse",), 2, "--rehearse is for --gpu"),
        (("--rounds", "0"), 2, "Invalid value for '--rounds'"),
        (("--scenario", "nothing"), 1, "BenchmarkError: --scenario nothing: unknown"),
        (("--quick", "--peers", "nobody"), 1, "BenchmarkError: --peers nobody: no such peer"),
        (("--quick", "--peer-python", "optimum=/no"), 1, "BenchmarkError: --peer-python optimum=/no: /no is no file"),
        (("--report", "/no/such/folder"), 1, "Name a folder that latentrt bench wrote"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(capsys, options, exit_code, message):
    run = run_main(capsys, "bench", *options)
    assert (run.exit, run.stdout) == (exit_code, "")
    assert message in " ".join(run.stderr.replace("│", " ").split())


def test_gpu_without_a_gpu(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("latentrt.benchmarks.suite.device_count", lambda: 0)
    run = run_main(capsys, "bench", "--gpu", "-o", tmp_path / "out")
    assert (run.exit, run.stdout) == (1, "")
    for said in ("sdxl-base", "need an NVIDIA GPU", "latentrt[cuda]", "latentrt bench --gpu --rehearse"):
        assert said in run.error
    assert not (tmp_path / "out").exists()


def test_a_kept_run_is_reported_anew_and_its_failures_fail(capsys, tmp_path):
    write_run(tmp_path / "run")
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    run = run_main(capsys, "bench", "--report", tmp_path / "run", "--readme", readme)
    assert run.exit == 1
    assert run.result["failed"] == ["broken"]
    assert run.result["scenarios"] == ["race", "curve", "part", "forms", "host", "broken"]
    assert run.result["median_seconds"]["race: 96×96, 10 steps"] == {"latentrt": 2.0, "diffusers": 6.0}
    assert "FAILED broken diffusers: diffusers: load: <out of memory>" in run.error
    assert (tmp_path / "run" / "report.html").is_file()
    assert "| latentrt | 2.00 s |" in readme.read_text()


def test_a_kept_run_without_failures_succeeds(capsys, tmp_path):
    write_run(tmp_path / "run", (records()[0], row("latentrt"), row("diffusers"), finished("race")))
    run = run_main(capsys, "bench", "--report", tmp_path / "run")
    assert (run.exit, run.result["failed"]) == (0, [])


def test_a_scenario_that_fails_is_a_failed_run(capsys, tmp_path):
    """A checkpoint without weights: the scenario fails before anybody is loaded, and the run says which and why."""
    broken = tmp_path / "broken"
    (broken / "unet").mkdir(parents=True)
    (broken / "vae").mkdir()
    (broken / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (broken / "unet" / "config.json").write_text('{"sample_size": 8}')
    (broken / "vae" / "config.json").write_text('{"block_out_channels": [8, 8]}')
    options = ("--scenario", "demo-quick", "--model", broken, "--peers", "none", "-o", tmp_path / "out")
    run = run_main(capsys, "bench", *options)
    assert run.exit == 1
    assert run.result["failed"] == ["demo-quick"]
    assert "FAILED demo-quick" in run.error
    assert "CheckpointError" in run.error
    (failure,) = read(tmp_path / "out").of(Failure)
    assert failure.scenario == "demo-quick"
    assert "Failed scenarios" in (tmp_path / "out" / "report.html").read_text()


def test_a_race_of_two_from_end_to_end(capsys, monkeypatch, tmp_path, sdxl_checkpoint, sdxl_bundle):
    """Ours and diffusers, real workers, the tiny checkpoint; its export is taken from the other tests."""
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path / "home"))
    (scenario,) = named(("demo-quick",), ())
    limits = request_limits(replace(scenario, model=str(sdxl_checkpoint)))
    target = bundle_folder(str(sdxl_checkpoint), "fp32", limits)
    shutil.copytree(sdxl_bundle, target)
    out = tmp_path / "out"
    run = run_main(
        capsys,
        *("bench", "--scenario", "demo-quick", "--model", sdxl_checkpoint, "--peers", "diffusers"),
        *("--threads", 1, "--rounds", 2, "-o", out),
    )
    assert run.exit == 0, run.stderr
    assert run.result["failed"] == []
    results = read(out)
    ours, other = results.of(Row)
    assert (ours.contender, other.contender) == ("latentrt", "diffusers")
    for row_ in (ours, other):
        assert len(row_.samples) == 2
        assert all(0 < sum(sample.stages.values()) <= sample.wall * 1.05 for sample in row_.samples)
        assert all(set(sample.stages) == {"text", "denoise", "decode"} for sample in row_.samples)
        assert row_.memory_run > 10**7
        assert row_.difference.max <= 2
    assert other.difference.max == 0
    works = results.of(StageWork)
    assert {work.stage for work in works} == {"text", "denoise", "decode"}
    assert sum(work.floor for work in works) < min(sample.wall for sample in ours.samples)
    assert "data:image/png" in (out / "report.html").read_text()
    assert json.loads(run.stdout.splitlines()[-1])["median_seconds"]["demo-quick: 96×96, 10 steps"].keys() == {
        "latentrt",
        "diffusers",
    }


@pytest.mark.slow
def test_the_gpu_suite_in_small_on_the_cpu(capsys, monkeypatch, tmp_path):
    """Every kind of scenario of the GPU suite by the same code, on the demo checkpoint."""
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path / "home"))
    names = ("sdxl-base", "sdxl-base-images", "sdxl-base-build", "sdxl-vae", "sdxl-refiner-unet", "sd15", "host-gpu")
    chosen = [word for name in names for word in ("--scenario", name)]
    run = run_main(capsys, "bench", "--gpu", "--rehearse", *chosen, "--peers", "diffusers", "-o", tmp_path / "out")
    assert run.exit == 0, run.stderr
    results = read(tmp_path / "out")
    assert [found.scenario for found in results.of(Finished)] == list(names)
    assert all("--rehearse" in found.command for found in results.of(Finished))
    for name in names:
        if name not in ("sdxl-base-build", "host-gpu"):
            assert {found.contender for found in results.of(Row, name)} == {"latentrt", "diffusers"}
    relative = [found.difference.mean for found in results.of(Row, "sdxl-refiner-unet")]
    assert max(relative) < 1e-4
    assert {found.contender for found in results.of(BuildRow)} >= {"latentrt", "latentrt-tensorrt-rtx"}
    ours, theirs = (sorted(found.per_step)[0] for found in results.of(HostRow))
    assert ours < 100e-6
    assert ours < theirs
