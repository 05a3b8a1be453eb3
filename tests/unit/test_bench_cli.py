"""`latentrt bench` as people type it: lists, refusals, failures, kept runs."""

import pytest
from bench_results import finished, gpu_records, records, row, write_run
from command_line import run_main

from latentrt.benchmarks.report.markdown import BEGIN, END
from latentrt.benchmarks.results import Failure, read
from latentrt.benchmarks.scenarios import SUITES


def test_the_list_names_every_scenario(capsys):
    run = run_main(capsys, "bench", "--list")
    assert run.exit == 0
    assert run.result == {"scenarios": {suite: [one.name for one in found] for suite, found in SUITES.items()}}
    quick = run_main(capsys, "bench", "--quick", "--list")
    assert quick.result == {"scenarios": {"chosen": [one.name for one in SUITES["quick"]]}}
    both = run_main(capsys, "bench", "--gpu", "--quick", "--list")
    assert both.result == {"scenarios": {"chosen": ["demo-gpu", "sdxl-base"]}}


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
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
    run = run_main(capsys, "bench", "--gpu", "-o", tmp_path / "out")
    assert (run.exit, run.stdout) == (1, "")
    for said in (
        "BenchmarkError: scenarios demo-gpu, sdxl-base,",
        "they need an NVIDIA GPU, for full-size SDXL with 24 GB or more",
        "cuda:0: ",
        "Install an NVIDIA driver",
        "latentrt doctor shows what works",
        "latentrt bench --gpu --rehearse",
    ):
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


def test_a_kept_gpu_run_ends_with_a_block_for_an_issue(capsys, tmp_path):
    write_run(tmp_path / "run", gpu_records()[:7])
    run = run_main(capsys, "bench", "--report", tmp_path / "run")
    assert run.exit == 0
    block = (tmp_path / "run" / "issue.md").read_text()
    assert run.result["issue"] == str((tmp_path / "run" / "issue.md").resolve())
    assert "compute capability 8.9" in block
    assert run.stderr.rstrip().endswith(block.rstrip().splitlines()[-1])
    for line in block.splitlines():
        assert line in run.stderr
    write_run(tmp_path / "cpu")
    other = run_main(capsys, "bench", "--report", tmp_path / "cpu")
    assert other.result["issue"] is None
    assert not (tmp_path / "cpu" / "issue.md").exists()


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
