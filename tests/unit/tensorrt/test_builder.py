"""The builder: every call exists, and options, profiles and lengths arrive."""

import json
from pathlib import Path
from typing import Any

import pytest
from graph_bundles import LIMITS
from tensorrt_runner import StandInTensorRT, decoder

from latentrt.engine.base import Job
from latentrt.engine.network import DTYPES
from latentrt.engine.tensorrt import TensorRTBuilder
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.specs import ComponentSpec, Port, port


def builder_answers(tensorrt: StandInTensorRT, spec: ComponentSpec) -> dict[str, Any]:
    """A network and an engine with the spec's ports, one convolution and one attention."""
    numbers = {name: dtype for dtype, name in DTYPES.items()}
    module = tensorrt.module
    layers = [module.LayerType.CONVOLUTION, module.LayerType.ATTENTION_INPUT]

    def tensor(found: Port) -> Any:
        return tensorrt.stand_in.stand_in("ITensor", found)

    def dtype(found: Port) -> Any:
        return getattr(module.DataType, numbers[found.dtype])

    def shape(found: Port) -> tuple[int, ...]:
        return tuple(-1 if axis.dim else axis.offset for axis in found.axes)

    ports = {found.name: found for found in spec.ports}
    query = port("query", "float16", "texts", 2, "tokens", 64)
    mode = module.TensorIOMode
    information = {"Layers": [{"Outputs": [{"Format/Datatype": "Row major linear Half"}]}, {"Name": "bare"}]}
    return {
        "INetworkDefinition__num_inputs": lambda _: len(spec.inputs),
        "INetworkDefinition__num_outputs": lambda _: len(spec.outputs),
        "INetworkDefinition__num_layers": lambda _: len(layers),
        "INetworkDefinition__get_input": lambda index: tensor(spec.inputs[index]),
        "INetworkDefinition__get_output": lambda index: tensor(spec.outputs[index]),
        "INetworkDefinition__get_layer": lambda index: tensorrt.stand_in.stand_in("ILayer", layers[index]),
        "ILayer__type": lambda layer: layer,
        "ILayer__get_output": lambda _: tensor(spec.inputs[0]),
        "IAttention__get_input": lambda index: tensor(query),
        "IAttention__mask": lambda _: tensor(query),
        "ITensor__name": lambda found: found.name,
        "ITensor__dtype": dtype,
        "ITensor__shape": shape,
        "Builder__build_serialized_network": lambda network, config: b"plan",
        "ITimingCache__serialize": lambda: b"timings",
        "ICudaEngine__num_io_tensors": lambda _: len(spec.ports),
        "ICudaEngine__get_tensor_name": lambda index: spec.ports[index].name,
        "ICudaEngine__get_tensor_dtype": lambda name: dtype(ports[name]),
        "ICudaEngine__get_tensor_shape": lambda name: shape(ports[name]),
        "ICudaEngine__get_tensor_mode": lambda name: mode.INPUT if ports[name] in spec.inputs else mode.OUTPUT,
        "EngineInspector__get_engine_information": lambda format: json.dumps(information),
    }


@pytest.mark.parametrize("tensorrt", ["tensorrt_rtx", "tensorrt_bindings"], indirect=True)
def test_builder(tensorrt: StandInTensorRT, tmp_path: Path) -> None:
    switched: list[Any] = []
    answers = builder_answers(tensorrt, decoder()) | {
        "IBuilderConfig__set_preview_feature": lambda feature, enable: switched.append((feature, enable))
    }
    tensorrt.use(**answers)
    options = BuildOptions().for_engine("vae_decoder")
    job = Job(decoder(), "fp16", tmp_path / "decoder.onnx", tmp_path, "decoder", options=options)
    for target in ("sm89", "sm75"):
        built = TensorRTBuilder(tensorrt.name, target).build(job)
    assert (tmp_path / built.files[0]).read_bytes() == b"plan"
    assert built.layers == {"ATTENTION_INPUT float16": 1, "CONVOLUTION float16": 1}
    assert built.notes == (
        "attention layers: 1, decomposed for want of a dedicated kernel: 0",
        "engine layers by output: Half 1",
    )
    preview = tensorrt.module.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10
    assert switched == [(preview, True)] * 4, "once for the build and once for its attention check"
    called = {"IAttention.decomposable", "IBuilderConfig.progress_monitor", "IBuilderConfig.clear_flag"}
    assert called <= tensorrt.stand_in.used
    timings = sorted(file.name for file in tmp_path.glob("cache/latentrt/timing/*"))
    version = tensorrt.module.__version__
    expected = [f"tensorrt-{version}-sm75.cache", f"tensorrt-{version}-sm89.cache"]
    assert timings == (expected if tensorrt.name == "tensorrt" else [])


def test_a_timing_cache_that_does_not_match_is_dropped(full: StandInTensorRT, tmp_path: Path) -> None:
    given: list[bytes] = []
    answers = builder_answers(full, decoder()) | {
        "IBuilderConfig__create_timing_cache": lambda blob: given.append(blob) or True,
        "IBuilderConfig__set_timing_cache": lambda cache, ignore_mismatch: given[-1] == b"",
    }
    full.use(**answers)
    for _ in range(2):
        job = Job(
            decoder(),
            "fp16",
            tmp_path / "x.onnx",
            tmp_path,
            "decoder",
            options=BuildOptions().for_engine("vae_decoder"),
        )
        TensorRTBuilder("tensorrt", "sm89").build(job)
    assert given == [b"", b"timings", b""]


def test_builder_gets_options_profiles_and_lengths(full: StandInTensorRT, tmp_path: Path) -> None:
    limits = LIMITS.replace(profiles=["128x72", "96x72"], vae_images="1")
    spec = decoder(limits)
    shapes: list[Any] = []
    answers = builder_answers(full, spec) | {
        "IOptimizationProfile__set_shape": lambda *given: shapes.append(given),
    }
    for given, expected in (
        (BuildOptions(), (4, 4, "FAST", 0)),
        (BuildOptions(optimization_level=5, tiling="none", aux_streams=2), (5, 4, "NONE", 2)),
    ):
        full.use(**answers)
        options = given.for_engine("vae_decoder")
        TensorRTBuilder("tensorrt", "sm89").build(
            Job(spec, "fp16", tmp_path / "x.onnx", tmp_path, "decoder", options=options)
        )
        level, timings, tiling, streams = expected
        config = {
            name.partition(".")[2]: value for name, value in full.stand_in.given.items() if "BuilderConfig" in name
        }
        assert config["builder_optimization_level"] == level
        assert config["avg_timing_iterations"] == timings
        assert config["tiling_optimization_level"] == getattr(full.module.TilingOptimizationLevel, tiling)
        assert config["max_aux_streams"] == streams
        assert full.stand_in.given["ITensor.shape"] == (1, 4, 9, -1)
    one, other = (1, 4, 9, 16), (1, 4, 9, 12)
    own = [given for given in shapes if given[0] == "latent"]
    assert own == [("latent", one, one, one), ("latent", other, other, other)] * 2
