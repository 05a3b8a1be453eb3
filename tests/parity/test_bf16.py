"""bf16 bundles: the right types everywhere, compared with torch, built by TensorRT-RTX, refused where no kernel is."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
from checkpoints import write_sdxl
from exports import export_components
from graph_bundles import write_graph_bundle
from networks import SMALL_UNET
from typer.testing import CliRunner

from latentrt.cli.main import application
from latentrt.engine.build import build_engines
from latentrt.engine.graph import heavy_nodes, read_graph
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.checks.layers import first_departure
from latentrt.export.numerics.emulation import emulated
from latentrt.export.sample_inputs import sample_inputs
from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.errors import BackendError, BuildError

HEAVY = ("ATTENTION_INPUT", "CONVOLUTION", "MATRIX_MULTIPLY")


def export(folder: Path, *names: str) -> Bundle:
    checkpoint = Checkpoint.open(write_sdxl(folder / "checkpoint", unet=SMALL_UNET))
    return export_components(folder / "bundle", checkpoint, names, "bf16")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return export(tmp_path_factory.mktemp("bf16"), "text_encoder", "vae_encoder", "sampler")


def check(bundle: Bundle, errors: tuple[float, float]) -> None:
    """Types of layers, in the graph and in TensorRT's; the error is bf16's, neither fp16's nor a wrong graph's."""
    for name, part in bundle.manifest.components.items():
        if name == "sampler":
            continue
        assert {layer.dtype for layer in heavy_nodes(read_graph(bundle.onnx(name)))} == {"bfloat16"}
        assert part.numerics is None
        assert errors[0] < max(figure.relative for figure in part.parity) < errors[1]
    pytest.importorskip("tensorrt_rtx")
    for name, engine in build_engines(bundle, "tensorrt-rtx").engines.items():
        kinds = {tuple(kind.split()) for kind in engine.layers}
        assert {dtype for kind, dtype in kinds if kind in HEAVY} == {"float32" if name == "sampler" else "bfloat16"}


def test_every_network_is_bf16(bundle):
    check(bundle, (3e-3, 3e-2))
    ports = bundle.manifest.components["sampler"]
    assert ports.inputs["noise_pred"].startswith("bfloat16")
    assert ports.outputs["sample"].startswith("bfloat16")
    assert ports.inputs["state"].startswith("float32")


@pytest.mark.slow
def test_the_other_networks_are_bf16(tmp_path):
    check(export(tmp_path, "text_encoder_2", "unet", "vae_decoder"), (3e-3, 6e-2))


def test_a_cpu_has_no_kernels_for_it_and_its_emulation_has(bundle):
    file = bundle.onnx("vae_encoder")
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with emulated(file) as copy:
        graph, original = onnx.load(copy).graph, onnx.load(file).graph
        onnx.checker.check_model(copy, full_check=True)
        assert {tensor.data_type for tensor in graph.initializer} & {onnx.TensorProto.BFLOAT16} == set()
        assert [value.name for value in graph.output] == [value.name for value in original.output]
        assert {name for node in original.node for name in node.output} <= {
            name for node in graph.node for name in node.output
        }


@pytest.mark.slow
def test_layers_follows_a_bf16_graph(bundle):
    checkpoint = Checkpoint.open(bundle.path.parent / "checkpoint")
    spec = bundle.manifest.specs()["text_encoder"]
    sample = {name: values.numpy() for name, values in sample_inputs(spec, spec.sizes("min"), 768).items()}
    assert first_departure(bundle.onnx("text_encoder"), spec, checkpoint, sample, 1e-1) is None
    assert first_departure(bundle.onnx("text_encoder"), spec, checkpoint, sample, 1e-4).compared < 3


def test_onnx_runtime_on_a_cpu_refuses_it(tmp_path):
    precision: Precision = "bf16"
    bundle = write_graph_bundle(tmp_path, precision=precision)
    message = r"^text_encoder: it is bf16, and ONNX Runtime has no .* for CPUs\. Export with --precision fp32 or"
    with pytest.raises(BuildError, match=message):
        build_engines(bundle, "onnxruntime")
    with pytest.raises(BackendError, match=message):
        Pipeline.load(bundle, "onnxruntime", "cpu")


@pytest.mark.parametrize("command", ["export", "build-engine"])
def test_the_command_line_hands_it_on(command, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def stop(checkpoint, target, **options):
        raise Reached(options["precision"], options["vae_precision"])

    monkeypatch.setattr("latentrt.export.exporter.export_bundle", stop)
    folder = write_sdxl(tmp_path / "checkpoint", weights=False)
    options = ["--random-weights", "0", "--precision", "bf16", "-o", str(tmp_path / "bundle")]
    options += ["--backend", "tensorrt-rtx"] if command == "build-engine" else []
    with pytest.raises(Reached) as caught:
        CliRunner().invoke(application(), [command, str(folder), *options], catch_exceptions=False)
    assert caught.value.args == ("bf16", "auto")
