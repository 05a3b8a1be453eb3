"""Optimised ONNX Runtime files: they compute what the bundle's graphs compute, without optimising again."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cuda_stand_in import StandInCuda
from graph_bundles import FLOAT32_ENCODER, GRAPHS, LIMITS, write_graph_bundle

from latentrt.engine.build import build_engines
from latentrt.engine.graph import count_nodes, read_graph
from latentrt.engine.onnxruntime import OnnxRuntimeBuilder
from latentrt.runtime.backends import cuda, identity, targets
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.specs import ComponentSpec, Precision
from latentrt.runtime.errors import BuildError, PrecisionError

BACKEND = "onnxruntime"


def run(file: Path, feeds: dict[str, Any], optimise: bool) -> list[Any]:
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def draw(spec: ComponentSpec) -> dict[str, Any]:
    """Inputs of a size that is neither the smallest nor the best."""
    sizes = {name: dim.min + 1 if name != "tokens" else dim.max for name, dim in spec.dims.items()}
    generator = np.random.default_rng(0)
    return {
        port.name: generator.integers(0, 99, port.shape(sizes))
        if port.dtype == "int64"
        else generator.standard_normal(port.shape(sizes)).astype(port.numpy_dtype)
        for port in spec.inputs
    }


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_built_files_give_the_same_numbers(tmp_path: Path, precision: Precision) -> None:
    bundle = write_graph_bundle(tmp_path, precision=precision)
    record = build_engines(bundle, BACKEND, hoist=False)
    bundle.check_build(record, **identity(BACKEND, record.target))
    for name, spec in bundle.manifest.specs().items():
        first, *rest = record.engines[name].files
        assert first.endswith(".onnx")
        assert rest in ([], [first + ".data"])
        feeds = draw(spec)
        for wanted, found in zip(
            run(bundle.onnx(name), feeds, True), run(bundle.path / first, feeds, False), strict=True
        ):
            if name == "unet":  # alone has group norms, which become other operators
                np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-3 if precision == "fp16" else 1e-5)
            else:
                np.testing.assert_array_equal(found, wanted)


def test_weights_stand_in_one_data_file(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path)
    record = build_engines(bundle, BACKEND)
    model, data = record.engines["vae_decoder"].files
    assert (bundle.path / data).stat().st_size >= 192 * 4 * 3 * 3 * 2
    graph = onnx.load(bundle.path / model, load_external_data=False).graph
    places = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    assert places == {Path(data).name}


def test_building_again_does_nothing_and_other_bounds_only_what_they_concern(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path)
    record = build_engines(bundle, BACKEND)
    events: list[Any] = []
    assert build_engines(bundle, BACKEND, progress=events.append) == record
    assert events == []
    build_engines(bundle, BACKEND, LIMITS.replace(vae_images="1:1:1"), progress=events.append)
    assert {event.component for event in events} == {"vae_decoder", "vae_encoder"}


def test_the_target_names_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "AMD64")
    for found, width in (("X86_V4", "avx512"), ("AVX512F", "avx512"), ("AVX2", "avx2"), ("SSE42", "base")):
        monkeypatch.setattr(np, "show_config", lambda mode, found=found: {"SIMD Extensions": {"found": [found]}})
        assert targets.cpu_target() == f"cpu-amd64-{width}"
    record = build_engines(write_graph_bundle(tmp_path, ("text_encoder",)), BACKEND)
    assert record.name == "onnxruntime-fp16-cpu-amd64-base"


def rewritten(tmp_path: Path, text: str) -> Bundle:
    return write_graph_bundle(tmp_path, ("vae_encoder",), graphs={"vae_encoder": text})


def test_a_float32_convolution_fails_an_fp16_build(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="vae_encoder: Conv sum runs in float32, fp16 needs float16; 1 of 1"):
        build_engines(rewritten(tmp_path, FLOAT32_ENCODER), BACKEND)


def test_ports_that_are_not_the_bundles(tmp_path: Path) -> None:
    graph = GRAPHS["vae_encoder"].replace("logvar", "variance")
    with pytest.raises(BuildError, match=r"outputs are mean, variance, the bundle says logvar, mean\. Export"):
        build_engines(rewritten(tmp_path, graph), BACKEND)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("vae_encoder",))
    bundle.onnx("vae_encoder").write_bytes(b"hello")
    with pytest.raises(BuildError, match=r"vae_encoder: .*vae_encoder.onnx cannot be read: "):
        build_engines(bundle, BACKEND)


def test_what_onnxruntime_refuses(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("vae_encoder",))
    file = bundle.onnx("vae_encoder")
    file.write_bytes(file.read_bytes().replace(b"SpaceToDepth", b"SpaceToSpace"))
    with pytest.raises(BuildError, match=r"vae_encoder: .*SpaceToSpace"):
        build_engines(bundle, BACKEND)


def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("vae_encoder",))
    for target in ("cuda-sm89", "tpu-1"):
        with pytest.raises(BuildError, match=rf"target {target}: needs .*, this onnxruntime has .*CPUExec"):
            build_engines(bundle, BACKEND, target=target)


def test_engines_are_built_on_the_card_that_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tried there."""
    gpu = StandInCuda((8, 9))
    monkeypatch.setattr(cuda, "bindings", lambda: gpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert OnnxRuntimeBuilder(BACKEND, "cuda-sm89").device == "cuda:0"
    with pytest.raises(BuildError, match=r"^target cuda-sm90: this machine has no such GPU, and "):
        OnnxRuntimeBuilder(BACKEND, "cuda-sm90")


def test_nodes_are_counted_with_their_dtypes(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("unet",))
    counts = count_nodes(read_graph(bundle.onnx("unet")))
    assert counts["Conv float16"] == 2
    assert counts["Shape int64"] == 1
    assert build_engines(bundle, BACKEND, hoist=False).engines["unet"].layers == counts
