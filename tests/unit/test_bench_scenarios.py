"""The list of scenarios, their rehearsal in small, and what they need."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from latentrt.benchmarks import CONFIGS
from latentrt.benchmarks.builds import build_row
from latentrt.benchmarks.contenders import CONTENDERS
from latentrt.benchmarks.context import Context, Options
from latentrt.benchmarks.harness import picture_task
from latentrt.benchmarks.models import (
    find_model,
    publish_names,
    request_limits,
    static_copy,
    static_limits,
    write_checkpoint,
)
from latentrt.benchmarks.pictures import _references
from latentrt.benchmarks.results import Failure, NotRun
from latentrt.benchmarks.scenarios import CPU, DEMO_GPU, GPU, QUICK, SDXL_BASE, SUITES, Point, named, rehearsed
from latentrt.benchmarks.suite import RUNNERS, check_gpu, scenario_command
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.family import CLASSES
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.errors import BenchmarkError

EVERY = list(dict.fromkeys(scenario for suite in SUITES.values() for scenario in suite))


def test_names_are_told_apart_and_everything_named_is_there():
    assert len({scenario.name for scenario in EVERY}) == len(EVERY)
    assert {name for scenario in EVERY for name in scenario.contenders} == set(CONTENDERS)
    assert {scenario.kind for scenario in EVERY} == set(RUNNERS)
    assert all(scenario.points and scenario.rounds for scenario in EVERY)


def test_the_suites_ask_what_was_promised():
    (main,) = [scenario for scenario in CPU if scenario.name == "sdxl-50m"]
    assert (main.points, main.rounds, main.precision) == ((Point(256, 256, 20),), 7, "fp32")
    assert {"latentrt", "diffusers", "diffusers-compile", "optimum"} <= set(main.contenders)
    (full,) = [scenario for scenario in GPU if scenario.name == "sdxl-base"]
    assert (full.points, full.precision, full.device) == ((Point(1024, 1024, 30),), "fp16", "cuda")
    reach = {
        scenario.axis: [point.along(scenario.axis) for point in scenario.points] for scenario in GPU if scenario.axis
    }
    assert (min(reach["steps"]), max(reach["steps"])) == (1, 50)
    assert (min(reach["images"]), max(reach["images"])) == (1, 8)
    assert (min(reach["size"]), max(reach["size"])) == (512, 1536)
    assert all(scenario.device == "cpu" for scenario in (*CPU, *QUICK))


def test_scenarios_by_name():
    assert named(("sdxl-base", "host"), QUICK) == (SDXL_BASE, CPU[-1])
    assert named((), QUICK) == QUICK
    with pytest.raises(BenchmarkError, match=r"--scenario sdxl-9000: unknown. The scenarios are demo-quick, "):
        named(("sdxl-9000",), QUICK)


@pytest.mark.parametrize("scenario", GPU, ids=lambda scenario: scenario.name)
def test_a_rehearsal_is_the_same_scenario_in_small(scenario):
    small = rehearsed(scenario)
    assert (small.device, small.precision, small.model) == ("cpu", "fp32", "demo")
    assert (small.name, small.contenders, small.kind, small.axis) == (
        scenario.name,
        scenario.contenders,
        scenario.kind,
        scenario.axis,
    )
    limits = Limits(**request_limits(small))
    for point in small.points:
        for name in ("width", "height", "images"):
            low, _, high = limits.bounds(name)
            assert low <= getattr(point, name) <= high
            assert getattr(point, name) % limits.STEP[name] == 0
    assert len(small.points) > 1 or len(scenario.points) == 1
    check_gpu([small])


def test_one_export_serves_every_scenario_of_a_model():
    for model in ("demo", "sdxl-50m"):
        assert len({tuple(request_limits(one).items()) for one in EVERY if one.model == model}) == 1


def test_engines_for_one_size():
    assert static_limits(SDXL_BASE) == {
        "width": "1024",
        "height": "1024",
        "images": "1",
        "tokens": "77",
        "vae_images": "1",
        "guidance": "on",
    }
    sizes = next(scenario for scenario in GPU if scenario.axis == "size")
    with pytest.raises(BenchmarkError, match=r"sdxl-base-size: engines for one size cannot serve its points"):
        static_limits(sizes)


def test_a_copy_for_other_ranges_shares_the_files(tmp_path):
    from hollow_bundles import write_hollow_bundle

    bundle = write_hollow_bundle(tmp_path / "bundle").path
    (bundle / "builds").mkdir()
    copy = static_copy(bundle, {"width": "64"})
    assert copy == static_copy(bundle, {"width": "64"}) != static_copy(bundle, {"width": "128"})
    assert not (copy / "builds").exists()
    file = "onnx/fp16/unet.onnx"
    assert (copy / file).read_bytes() == (bundle / file).read_bytes()


def test_models():
    assert find_model("demo").has_weights
    assert find_model("sdxl-50m").folder == CONFIGS / "sdxl-50m"
    assert find_model(str(CONFIGS / "sdxl-base")).name == "sdxl-base"
    with pytest.raises(BenchmarkError, match=r"model sdxl-51m: unknown. The models are demo, .*sdxl-50m, sdxl-base"):
        find_model("sdxl-51m")


def test_without_a_gpu_gpu_scenarios_say_what_they_need():
    message = (
        r"sdxl-base.*need an NVIDIA GPU, for .* 24 GB or more.*cuda:0: .*Install an NVIDIA driver.*--gpu --rehearse"
    )
    with pytest.raises(BenchmarkError, match=message):
        check_gpu(GPU)
    check_gpu(CPU)


def test_with_a_gpu_torch_must_be_built_for_it(gpu, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(
        BenchmarkError, match=r"torch \S+, which draws the reference, was built without CUDA\. Install one"
    ):
        check_gpu(GPU)
    with pytest.raises(BenchmarkError, match="was built without CUDA"):
        check_gpu([DEMO_GPU], ("diffusers",))
    check_gpu([DEMO_GPU], ("nobody",))  # the reference is drawn on the CPU
    monkeypatch.setattr("torch.version.cuda", "13.0")
    check_gpu(GPU)


def test_the_first_gpu_scenario_is_compared_with_the_cpu():
    """With pictures of the checkpoint that ships; in a rehearsal everything is on the CPU."""
    first, second = SUITES["gpu-quick"]
    assert (first.model, first.device, first.reference_device) == ("demo", "cuda", "cpu")
    assert (second, second.reference_device) == (SDXL_BASE, "cuda")
    assert rehearsed(first).reference_device == "cpu"
    assert GPU[:2] == (first, second)


def test_the_reference_is_drawn_where_the_scenario_says(tmp_path, monkeypatch):
    loaded = []

    class Drawing:
        log = tmp_path / "log"

        def call(self, name, **inputs):
            loaded.append((name, inputs))

        def settle(self):
            pass

    context = Context(Options(tmp_path, 1, ()), lambda record: None, lambda text: None)
    monkeypatch.setattr(Context, "worker", lambda *arguments: nullcontext(Drawing()))
    for scenario, device in ((DEMO_GPU, "cpu"), (SDXL_BASE, "cuda")):
        loaded.clear()
        task = picture_task(scenario, scenario.points[0])
        _references(context, scenario, [], {scenario.points[0]: task}, {})
        assert [name for name, _ in loaded] == ["load", "sample"]
        assert (loaded[0][1]["device"], loaded[0][1]["precision"]) == (device, "fp32")


def test_engines_are_recorded_with_the_seconds_that_they_took():
    built = {
        "limits": {"width": "96"},
        "seconds": 0.1,
        "memory": 5,
        "components": {"unet_body": (3.0, 10), "sampler": (1.0, 2)},
        "layers": {"sampler": {"MatMul float32": 1}},
    }
    found = build_row(DEMO_GPU, CONTENDERS["latentrt-tensorrt"], built)
    assert (found.scenario, found.contender, found.seconds, found.bytes) == ("demo-gpu", "latentrt-tensorrt", 4.0, 12)


def test_who_takes_part(tmp_path, monkeypatch):
    """Not asked for: listed. Asked for and missing: a failure that says how to get it. Ours, not installed: listed."""
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path / "home"))
    written, said = [], []
    context = Context(Options(tmp_path, 1, ("diffusers", "optimum", "stable-fast")), written.append, said.append)
    names = ("latentrt", "latentrt-tensorrt", "diffusers", "diffusers-compile", "optimum", "stable-fast")
    scenario = replace(rehearsed(SDXL_BASE), contenders=names)
    assert [one.name for one in context.entrants(scenario)] == ["latentrt", "diffusers"]
    found = {record.contender: record for record in written}
    assert found["diffusers-compile"] == NotRun(
        "sdxl-base", "diffusers-compile", "not asked for; ask with --peers diffusers-compile"
    )
    assert found["latentrt-tensorrt"] == NotRun("sdxl-base", "latentrt-tensorrt", "does not run on cpu")
    assert found["stable-fast"] == NotRun("sdxl-base", "stable-fast", "does not run on cpu")
    assert isinstance(found["optimum"], Failure)
    assert "latentrt bench --install-peers" in found["optimum"].message
    assert len(said) == 1


def test_the_command_that_repeats_a_scenario(tmp_path):
    options = Options(tmp_path, 2, ("diffusers", "optimum"), rehearse=True)
    assert scenario_command(QUICK[0], options) == (
        "latentrt bench --scenario demo-quick --peers diffusers,optimum --threads 2 --rounds 7 --rehearse"
    )
    own = replace(QUICK[0], model="/models/my own")
    assert scenario_command(own, Options(tmp_path, 2, ())).endswith(
        "--peers none --threads 2 --rounds 7 --model '/models/my own'"
    )


def test_every_contender_reads_names_that_older_libraries_know(sdxl_checkpoint, tmp_path):
    """Without the prefix transformers 4 finds no tensor of the first text encoder, and makes them up."""
    folder = shutil.copytree(sdxl_checkpoint, tmp_path / "checkpoint")
    before = {part: Checkpoint.open(folder).network(part, torch.float32).state_dict() for part in CLASSES}
    publish_names(folder)
    publish_names(folder)
    for file in folder.glob("text_encoder*/model.safetensors"):
        names = [name for name in load_file(file) if not name.startswith("text_projection")]
        assert all(name.startswith("text_model.") and name.count("text_model.") == 1 for name in names)
    for part in CLASSES:
        after = Checkpoint.open(folder).network(part, torch.float32).state_dict()
        assert after.keys() == before[part].keys()
        assert all(torch.equal(after[name], before[part][name]) for name in after)


def test_a_model_without_weights_is_made_once(tmp_path, monkeypatch, sdxl_checkpoint):
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path / "home"))
    configs = shutil.copytree(
        sdxl_checkpoint, tmp_path / "configs" / "tiny", ignore=shutil.ignore_patterns("*.safetensors")
    )
    monkeypatch.setattr("latentrt.benchmarks.models.CONFIGS", tmp_path / "configs")
    made = write_checkpoint("tiny")
    Checkpoint.open(made)
    stamp = (made / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert write_checkpoint("tiny") == made
    assert (made / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == stamp
    assert all(
        tensor.dtype == torch.float16 for tensor in load_file(made / "text_encoder" / "model.safetensors").values()
    )
    (configs / "unet" / "config.json").write_text((configs / "unet" / "config.json").read_text() + " ")
    assert write_checkpoint("tiny") != made
