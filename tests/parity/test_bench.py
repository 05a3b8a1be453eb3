"""`latentrt bench` on real exports: a race from end to end, and work counted as torch counts it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from command_line import run_main
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentrt.benchmarks.flops import count
from latentrt.benchmarks.models import bundle_folder, request_limits
from latentrt.benchmarks.results import BuildRow, Finished, HostRow, Peaks, Row, StageWork, read
from latentrt.benchmarks.roofline import component_sizes, stage_work
from latentrt.benchmarks.scenarios import Point, Scenario, named
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules import MODULES, wrap
from latentrt.export.sample_inputs import sample_inputs
from latentrt.runtime.bundle import Bundle

SIZES = {"rows": 2, "tokens": 154, "latent_height": 9, "latent_width": 16, "texts": 2, "vae_images": 1}


@pytest.mark.parametrize("component", ["text_encoder_2", "unet", "vae_decoder", "vae_encoder"])
def test_a_whole_component_counts_as_torch_does(sdxl_bundle, sdxl_checkpoint, component):
    """Exactly; torch counts attention's products where it computes them one by one.

    `text_encoder` differs by design: its last layer, which nobody reads, is not exported.
    """
    bundle = Bundle.open(sdxl_bundle)
    spec = bundle.manifest.specs(bundle.manifest.limits)[component]
    checkpoint = Checkpoint.open(sdxl_checkpoint)
    module = wrap(component, checkpoint.network(MODULES[component][0], torch.float32), checkpoint.model)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(**sample_inputs(spec, SIZES, 100))
    assert count(bundle.onnx(component), SIZES).total_flops == counter.get_total_flops()


def test_the_stages_of_a_request(sdxl_bundle):
    point = Point(64, 48, steps=3, images=2, guidance=5.0)
    scenario = Scenario("s", "?", "demo", (point,), ("latentrt",))
    bundle = Bundle.open(sdxl_bundle)
    stages = {work.stage: work for work in stage_work(sdxl_bundle, scenario, point, Peaks("cpu", {"fp32": 1}, 1, ""))}
    sizes = component_sizes(bundle, point)
    scale = bundle.manifest.model.latent_scale
    assert (sizes["rows"], sizes["latent_height"], sizes["latent_width"]) == (4, 48 // scale, 64 // scale)
    once = {
        name: count(bundle.onnx(name), sizes).total_flops for name in bundle.manifest.components if name != "sampler"
    }
    assert {stage: work.flops for stage, work in stages.items()} == {
        "text": once["text_encoder"] + once["text_encoder_2"],
        "denoise": 3 * once["unet"],
        "decode": 2 * once["vae_decoder"],
    }
    assert [work.evaluations for work in stages.values()] == [1, 3, 2]


@pytest.mark.slow
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
    block = (tmp_path / "out" / "issue.md").read_text()
    assert "- A rehearsal: small versions of the scenarios, on the CPU" in block
    assert "- sdxl-base-build, latentrt, TensorRT-RTX:" in block
    assert all(f"\n| {name} |" in block for name in ("latentrt", "diffusers"))
    ours, theirs = (sorted(found.per_step)[0] for found in results.of(HostRow))
    assert ours < 100e-6
    assert ours < theirs
