"""Every TensorRT class, method, property and argument that latentrt uses exists.

The real builder and runner run against stand-ins made from the real classes of TensorRT-RTX, of the lean TensorRT
runtime, and of full TensorRT's bindings where they are installed.
"""

import json
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import StandInCuda
from graph_bundles import GRAPHS, LIMITS, MODEL
from tensorrt_stand_ins import StandInModule, check_call, import_tensorrt_bindings

from latentrt.engine import tensorrt as builder_module
from latentrt.engine.base import Job
from latentrt.engine.network import DTYPES
from latentrt.engine.tensorrt import TensorRTBuilder
from latentrt.runtime.backends import cuda, cuda_memory
from latentrt.runtime.backends import tensorrt as runner_module
from latentrt.runtime.backends.cuda_graph import Graph
from latentrt.runtime.backends.tensorrt import TensorRTBackend
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.specs import ComponentSpec, Port, port
from latentrt.runtime.errors import BackendError, LatentRTError, RequestError, StaleBuildError

BACKENDS = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt_lean": "tensorrt", "tensorrt_bindings": "tensorrt"}
SIZES = {"vae_images": 1, "latent_height": 9, "latent_width": 16}


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return import_tensorrt_bindings(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(params=["tensorrt_rtx", "tensorrt_lean", "tensorrt_bindings"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "tensorrt_bindings":
        return request.getfixturevalue("bindings")
    return pytest.importorskip(request.param)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path / "cache" / "latentrt"))


@pytest.fixture
def spec() -> ComponentSpec:
    return component_specs(MODEL, LIMITS, dict.fromkeys(GRAPHS, "fp16"))["vae_decoder"]


def use(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **answers: Any) -> StandInModule:
    stand_in = StandInModule(module, {name.replace("__", "."): answer for name, answer in answers.items()})
    for place in (builder_module, runner_module):
        monkeypatch.setattr(place, "load_module", lambda _name: stand_in)
    return stand_in


def shapes(spec: ComponentSpec) -> Any:
    return lambda name: next(found.shape(SIZES) for found in spec.ports if found.name == name)


def open_engine(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, spec: ComponentSpec, folder: Path, **answers: Any
) -> tuple[StandInModule, TensorRTBackend, Any]:
    defaults = {"IExecutionContext__get_tensor_shape": shapes(spec), "IRuntimeCache__serialize": lambda: b"kernels"}
    stand_in = use(monkeypatch, module, **(defaults | answers))
    (folder / "decoder.engine").write_bytes(b"plan")
    backend = TensorRTBackend(BACKENDS[module.__name__], "cuda:0")
    return stand_in, backend, backend.load(spec, folder / "decoder.engine")


def test_runner(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, spec: ComponentSpec, tmp_path: Path
) -> None:
    stand_in, backend, engine = open_engine(monkeypatch, module, spec, tmp_path)
    binding = engine.bind(SIZES)
    buffers = binding.buffers
    assert {name: buffer.shape for name, buffer in buffers.items()} == {
        "latent": (1, 4, 9, 16),
        "image": (1, 72, 128, 3),
        "magnitude": (1,),
    }
    values = np.random.default_rng(0).standard_normal((1, 4, 9, 16))
    buffers["latent"].write(values)
    binding.run()
    np.testing.assert_array_equal(buffers["latent"].numpy(), values.astype("float16"))
    np.testing.assert_array_equal(buffers["latent"].fetch()(), values.astype("float16"))
    assert engine.bind(SIZES).buffers["latent"] is not buffers["latent"]
    engine.close()
    engine.close()
    with pytest.raises(LatentRTError, match="vae_decoder: the engine is closed"):
        engine.bind(SIZES)
    del binding, buffers
    backend.close()
    assert not gpu.memory
    assert {"IExecutionContext.execute_async_v3", "IExecutionContext.set_device_memory"} <= stand_in.used
    kernels = list((tmp_path / "kernels").glob("*.cache"))
    assert [file.read_bytes() for file in kernels] == ([b"kernels"] if backend.name == "tensorrt-rtx" else [])


def test_runner_reads_the_kernels_of_the_process_before(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, spec: ComponentSpec, tmp_path: Path
) -> None:
    module = pytest.importorskip("tensorrt_rtx")
    given: list[bytes] = []
    for _ in range(2):
        _, backend, engine = open_engine(
            monkeypatch, module, spec, tmp_path, IRuntimeCache__deserialize=lambda blob: given.append(blob) or True
        )
        engine.bind(SIZES)
        engine.close()
        backend.close()
    assert given == [b"kernels"]


def test_runner_shares_buffers(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, spec: ComponentSpec, tmp_path: Path
) -> None:
    addresses: dict[str, int] = {}
    _, backend, engine = open_engine(
        monkeypatch,
        module,
        spec,
        tmp_path,
        IExecutionContext__set_tensor_address=lambda name, memory: addresses.update({name: memory}) or True,
    )
    latent = cuda_memory.DeviceBuffer((1, 4, 9, 16), np.float16, backend.stream)
    buffers = engine.bind(SIZES, {"latent": latent}).buffers
    assert buffers["latent"] is latent
    assert addresses == {name: buffer.pointer for name, buffer in buffers.items()}
    wrong = cuda_memory.DeviceBuffer((1, 4, 9, 16), np.float32, backend.stream)
    with pytest.raises(BackendError, match=r"latent needs a buffer float16\[1, 4, 9, 16\], the shared one is float32"):
        engine.bind(SIZES, {"latent": wrong})


@pytest.mark.parametrize(
    ("what", "answer", "message"),
    [
        ("IExecutionContext__set_input_shape", lambda name, shape: False, r"refuses latent \[1, 4, 9, 16\]"),
        ("IExecutionContext__get_tensor_shape", lambda name: (1,), r"computes image \[1\], needed \[1, 72, 128, 3\]"),
        ("IExecutionContext__set_tensor_address", lambda name, memory: False, "cannot bind latent"),
        (
            "IExecutionContext__update_device_memory_size_for_shapes",
            lambda: 0,
            "vae_decoder: .* does not say how much memory it needs",
        ),
        ("IExecutionContext__execute_async_v3", lambda stream: False, "vae_decoder: .* did not run"),
        ("ICudaEngine__create_execution_context", lambda _: None, "vae_decoder: .* cannot be prepared"),
        ("Runtime__deserialize_cuda_engine", lambda plan: None, "cannot load .*Rebuild with: build-engine"),
    ],
)
def test_runner_failures(
    monkeypatch: pytest.MonkeyPatch,
    gpu: StandInCuda,
    module: ModuleType,
    spec: ComponentSpec,
    tmp_path: Path,
    what: str,
    answer: Any,
    message: str,
) -> None:
    def use_it() -> None:
        _, _, engine = open_engine(monkeypatch, module, spec, tmp_path, **{what: answer})
        engine.bind(SIZES).run()

    with pytest.raises(BackendError, match=message):
        use_it()


def test_an_engine_without_activations_needs_no_memory(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, spec: ComponentSpec, tmp_path: Path
) -> None:
    _, _, engine = open_engine(
        monkeypatch,
        module,
        spec,
        tmp_path,
        IExecutionContext__update_device_memory_size_for_shapes=lambda: 0,
        ICudaEngine__device_memory_size_v2=lambda _: 0,
    )
    engine.bind(SIZES).run()


def test_kernels_are_compiled_at_once_and_saved_after_the_first_inference(
    monkeypatch: pytest.MonkeyPatch,
    gpu: StandInCuda,
    spec: ComponentSpec,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = pytest.importorskip("tensorrt_rtx")
    cache = {"kernels": b"one"}
    stand_in, backend, engine = open_engine(
        monkeypatch, module, spec, tmp_path, IRuntimeCache__serialize=lambda: cache["kernels"]
    )
    binding = engine.bind(SIZES)
    strategy = stand_in.given["IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy"]
    assert strategy == module.DynamicShapesKernelSpecializationStrategy.EAGER
    assert backend.kernels is not None
    file = tmp_path / "kernels" / f"tensorrt-rtx-{module.__version__}-geforce-rtx-4090.cache"
    assert not file.exists()
    binding.run()
    assert file.read_bytes() == b"one"
    cache["kernels"] = b"two"
    binding.run()
    assert file.read_bytes() == b"one"
    engine.bind(SIZES).run()
    assert file.read_bytes() == b"two"
    cache["kernels"] = b"three"
    backend.kernels.files = [tmp_path / "decoder.engine" / "not-a-folder.cache"]
    engine.bind(SIZES).run()
    backend.close()
    (record,) = caplog.records
    assert "cannot be written, so the next process compiles its kernels again" in record.message


def run_once(monkeypatch: pytest.MonkeyPatch, spec: ComponentSpec, folder: Path, **answers: Any) -> None:
    """Load an engine from a build's folder, bind it and run it, and end."""
    folder.mkdir(exist_ok=True)
    _, backend, engine = open_engine(monkeypatch, pytest.importorskip("tensorrt_rtx"), spec, folder, **answers)
    engine.bind(SIZES).run()
    backend.close()


def test_kernels_travel_with_their_build(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, spec: ComponentSpec, tmp_path: Path
) -> None:
    """What one machine compiled is read on the next, and copied into a build that has none."""
    given: list[bytes] = []
    answers = {"IRuntimeCache__deserialize": lambda blob: given.append(blob) or True}
    run_once(monkeypatch, spec, tmp_path / "build", **answers)
    (made,) = (tmp_path / "build" / "kernels").glob("*.cache")
    assert (made.read_bytes(), given) == (b"kernels", [])
    (tmp_path / "build").rename(tmp_path / "moved")
    run_once(monkeypatch, spec, tmp_path / "moved", **answers)
    assert given == [b"kernels"]
    assert not (tmp_path / "cache").exists()
    user = tmp_path / "cache" / "latentrt" / "kernels" / made.name
    user.parent.mkdir(parents=True)
    user.write_bytes(b"kernels")
    run_once(monkeypatch, spec, tmp_path / "another", **answers)
    assert given == [b"kernels"] * 2
    assert (tmp_path / "another" / "kernels" / made.name).read_bytes() == b"kernels"


def test_kernels_of_a_build_that_cannot_be_written_go_to_the_user_s_cache(
    monkeypatch: pytest.MonkeyPatch,
    gpu: StandInCuda,
    spec: ComponentSpec,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "kernels").write_text("no folder can be made here")
    given: list[bytes] = []
    answers = {"IRuntimeCache__deserialize": lambda blob: given.append(blob) or True}
    for _ in range(2):
        run_once(monkeypatch, spec, tmp_path / "build", **answers)
    (file,) = (tmp_path / "cache" / "latentrt" / "kernels").glob("*.cache")
    assert (file.read_bytes(), given) == (b"kernels", [b"kernels"])
    assert not caplog.records


def test_kernels_that_the_driver_refuses_are_looked_for_elsewhere_and_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, spec: ComponentSpec, tmp_path: Path
) -> None:
    run_once(monkeypatch, spec, tmp_path / "build")
    (made,) = (tmp_path / "build" / "kernels").glob("*.cache")
    made.write_bytes(b"of another driver")
    user = tmp_path / "cache" / "latentrt" / "kernels" / made.name
    user.parent.mkdir(parents=True)
    user.write_bytes(b"of this driver")
    given: list[bytes] = []
    answers = {"IRuntimeCache__deserialize": lambda blob: given.append(blob) or blob == b"of this driver"}
    run_once(monkeypatch, spec, tmp_path / "build", **answers)
    assert given == [b"of another driver", b"of this driver"]
    assert made.read_bytes() == b"kernels"


def test_a_binding_uses_the_tightest_profile_and_an_engine_of_one_asks_for_none(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, tmp_path: Path
) -> None:
    chosen: list[int] = []
    order: list[str] = []
    answers = {
        "IExecutionContext__set_optimization_profile_async": lambda number, stream: (
            chosen.append(number) or order.append("profile") or number < 2
        ),
        "IExecutionContext__set_input_shape": lambda name, shape: order.append("shape") or True,
        "IExecutionContext__set_tensor_address": lambda name, memory: order.append("address") or True,
        "IExecutionContext__update_device_memory_size_for_shapes": lambda: order.append("size") or 1,
        "IExecutionContext__set_device_memory": lambda memory, size: order.append("memory"),
        "IExecutionContext__execute_async_v3": lambda stream: order.append("run") or True,
    }
    limits = LIMITS.replace(profiles=["64:128:192x64:128:192", "128x72", "64x64"])
    for served, expected in ((limits, [1]), (LIMITS, [])):
        spec = component_specs(MODEL, served, dict.fromkeys(GRAPHS, "fp16"))["vae_decoder"]
        chosen.clear()
        order.clear()
        _, backend, engine = open_engine(monkeypatch, module, spec, tmp_path, **answers)
        engine.bind(SIZES).run()
        assert chosen == expected
        assert order == [*["profile"] * len(expected), "shape", *["address"] * 3, "size", "memory", "run"]
        backend.close()
    spec = component_specs(MODEL, limits, dict.fromkeys(GRAPHS, "fp16"))["vae_decoder"]
    _, backend, engine = open_engine(monkeypatch, module, spec, tmp_path, **answers)
    with pytest.raises(BackendError, match=r"^vae_decoder: \S+ refuses its optimisation profile 2: "):
        engine.bind({"vae_images": 1, "latent_height": 8, "latent_width": 8})


def test_a_step_is_captured_only_when_tensorrt_says_that_it_can_be(
    monkeypatch: pytest.MonkeyPatch,
    gpu: StandInCuda,
    spec: ComponentSpec,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = pytest.importorskip("tensorrt_rtx")
    ready: list[bool] = []
    _, backend, engine = open_engine(
        monkeypatch, module, spec, tmp_path, IExecutionContext__is_stream_capturable=lambda stream: bool(ready)
    )
    binding, unused = engine.bind(SIZES), engine.bind(SIZES)
    step = backend.record(binding.run)
    for _ in range(3):
        step()
    assert "cudaStreamBeginCapture" not in [name for name, *_ in gpu.calls]
    (record,) = caplog.records
    assert "vae_decoder: tensorrt-rtx says that it cannot be captured" in record.message
    ready.append(True)
    for _ in range(3):
        step()
    assert [name for name, *_ in gpu.calls].count("cudaStreamBeginCapture") == 1
    assert [name for name, *_ in gpu.calls].count("cudaGraphLaunch") == 2
    assert unused.obstacle() is None


def test_there_is_one_workspace_and_graphs_follow_it(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, spec: ComponentSpec, tmp_path: Path
) -> None:
    """A larger one takes the old one's place: no block is kept, every context moves, and graphs are captured anew."""
    sizes, given = [1000, 500, 9000], []
    _, backend, engine = open_engine(
        monkeypatch,
        module,
        spec,
        tmp_path,
        IExecutionContext__update_device_memory_size_for_shapes=lambda: sizes.pop(0),
        IExecutionContext__set_device_memory=lambda pointer, size: given.append((pointer, size)),
    )

    def blocks() -> list[tuple[int, int]]:
        return [(pointer, len(block)) for pointer, block in gpu.memory.items() if len(block) in (1000, 500, 9000)]

    def graphs() -> int:
        return [name for name, *_ in gpu.calls].count("cudaGraphInstantiate")

    first = engine.bind(SIZES)
    step = backend.record(first.run)
    for _ in range(3):
        step()
    second = engine.bind(SIZES)
    step()
    assert (given, graphs()) == (blocks() * 2, 1)
    third = engine.bind(SIZES)
    assert given[2:] == blocks() * 2 + blocks()
    assert [size for _, size in blocks()] == [9000]
    for _ in range(2):
        step()
        assert (graphs(), len(gpu.graphs)) == (2, 1)
    del second, third


def test_a_workspace_that_does_not_fit_leaves_the_old_one(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, spec: ComponentSpec, tmp_path: Path
) -> None:
    sizes, given = [1000, 1 << 40], []
    _, _, engine = open_engine(
        monkeypatch,
        module,
        spec,
        tmp_path,
        IExecutionContext__update_device_memory_size_for_shapes=lambda: sizes.pop(0),
        IExecutionContext__set_device_memory=lambda pointer, size: given.append((pointer, size)),
    )
    binding = engine.bind(SIZES)
    with pytest.raises(BackendError, match=r"cuda:0: 1099\.51 GB asked, .* Ask for fewer images"):
        engine.bind(SIZES)
    assert [size for _, size in given] == [1000, 1000]
    assert given[-1][0] in gpu.memory
    binding.run()


@pytest.mark.parametrize("closed", [True, False])
def test_contexts_go_before_engines_the_runtime_and_the_logger(
    monkeypatch: pytest.MonkeyPatch,
    gpu: StandInCuda,
    module: ModuleType,
    spec: ComponentSpec,
    tmp_path: Path,
    closed: bool,
) -> None:
    """By `close`, or by the finalizers that run at the process's end, newest first."""
    stand_in, backend, engine = open_engine(monkeypatch, module, spec, tmp_path)
    binding = engine.bind(SIZES)
    held = ("IExecutionContext", "ICudaEngine", "Runtime")
    assert not set(held) & set(stand_in.gone)
    if closed:
        backend.close()
        with pytest.raises(LatentRTError, match="vae_decoder: the engine is closed"):
            binding.run()
    else:
        finalizers = [binding._drop, engine._drop, backend._drop_runtime]
        numbers = [weakref.finalize._registry[one].index for one in finalizers]  # type: ignore[attr-defined]
        assert numbers == sorted(numbers, reverse=True)
        assert all(one.atexit for one in finalizers)
        for one in finalizers:
            one()
    assert tuple(name for name in stand_in.gone if name in held) == held


def test_an_engine_of_another_version_is_stale(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, spec: ComponentSpec, tmp_path: Path
) -> None:
    def refuse(_plan: Any) -> None:
        backend_log.log(module.ILogger.ERROR, "Version tag does not match: 238, 239")

    stand_in = use(monkeypatch, module, Runtime__deserialize_cuda_engine=refuse)
    backend = TensorRTBackend(BACKENDS[module.__name__], "cuda:0")
    backend_log = backend.log
    (tmp_path / "old.engine").write_bytes(b"plan")
    with pytest.raises(StaleBuildError, match=r"cannot load .*old.engine: Version tag does not match.*Rebuild with"):
        backend.load(spec, tmp_path / "old.engine")
    assert stand_in.used == {"Runtime.deserialize_cuda_engine"}


def test_sizes_are_checked_before_anything_is_set(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, spec: ComponentSpec, tmp_path: Path
) -> None:
    _, _, engine = open_engine(monkeypatch, module, spec, tmp_path)
    with pytest.raises(RequestError, match="latent_width 99 is outside 8 to 24"):
        engine.bind({**SIZES, "latent_width": 99})


def test_a_gpu_that_tensorrt_rtx_does_not_serve(monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda) -> None:
    use(monkeypatch, pytest.importorskip("tensorrt_rtx"))
    gpu.capability = (9, 0)
    with pytest.raises(BackendError, match=r"tensorrt-rtx does not serve the .* \(compute capability 9.0\)"):
        TensorRTBackend("tensorrt-rtx")


def builder_answers(owner: dict[str, StandInModule], module: ModuleType, spec: ComponentSpec) -> dict[str, Any]:
    """A network and an engine with the spec's ports, one convolution and one attention."""
    numbers = {name: dtype for dtype, name in DTYPES.items()}
    layers = [module.LayerType.CONVOLUTION, module.LayerType.ATTENTION_INPUT]

    def tensor(found: Port) -> Any:
        return owner["module"].stand_in("ITensor", found)

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
        "INetworkDefinition__get_layer": lambda index: owner["module"].stand_in("ILayer", layers[index]),
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


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt_bindings"])
def test_builder(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    gpu: StandInCuda,
    spec: ComponentSpec,
    tmp_path: Path,
    name: str,
) -> None:
    module = pytest.importorskip(name) if name == "tensorrt_rtx" else request.getfixturevalue("bindings")
    owner: dict[str, StandInModule] = {}
    switched: list[Any] = []
    answers = builder_answers(owner, module, spec) | {
        "IBuilderConfig__set_preview_feature": lambda feature, enable: switched.append((feature, enable))
    }
    stand_in = owner["module"] = use(monkeypatch, module, **answers)
    options = BuildOptions().for_engine("vae_decoder")
    job = Job(spec, "fp16", tmp_path / "decoder.onnx", tmp_path, "decoder", options=options)
    for target in ("sm89", "sm75"):
        built = TensorRTBuilder(BACKENDS[name], target).build(job)
    assert (tmp_path / built.files[0]).read_bytes() == b"plan"
    assert built.layers == {"ATTENTION_INPUT float16": 1, "CONVOLUTION float16": 1}
    assert built.notes == (
        "attention layers: 1, decomposed for want of a dedicated kernel: 0",
        "engine layers by output: Half 1",
    )
    preview = module.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10
    assert switched == [(preview, True)] * 4, "once for the build and once for its attention check"
    assert {"IAttention.decomposable", "IBuilderConfig.progress_monitor", "IBuilderConfig.clear_flag"} <= stand_in.used
    timings = sorted(file.name for file in tmp_path.glob("cache/latentrt/timing/*"))
    version = module.__version__
    expected = [f"tensorrt-{version}-sm75.cache", f"tensorrt-{version}-sm89.cache"]
    assert timings == (expected if name == "tensorrt_bindings" else [])


def test_a_timing_cache_that_does_not_match_is_dropped(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, bindings: ModuleType, spec: ComponentSpec, tmp_path: Path
) -> None:
    owner: dict[str, StandInModule] = {}
    given: list[bytes] = []
    answers = builder_answers(owner, bindings, spec) | {
        "IBuilderConfig__create_timing_cache": lambda blob: given.append(blob) or True,
        "IBuilderConfig__set_timing_cache": lambda cache, ignore_mismatch: given[-1] == b"",
    }
    owner["module"] = use(monkeypatch, bindings, **answers)
    for _ in range(2):
        job = Job(
            spec, "fp16", tmp_path / "x.onnx", tmp_path, "decoder", options=BuildOptions().for_engine("vae_decoder")
        )
        TensorRTBuilder("tensorrt", "sm89").build(job)
    assert given == [b"", b"timings", b""]


def test_builder_gets_options_profiles_and_lengths(
    monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, bindings: ModuleType, tmp_path: Path
) -> None:
    limits = LIMITS.replace(profiles=["128x72", "96x72"], vae_images="1")
    spec = component_specs(MODEL, limits, dict.fromkeys(GRAPHS, "fp16"))["vae_decoder"]
    owner: dict[str, StandInModule] = {}
    shapes: list[Any] = []
    answers = builder_answers(owner, bindings, spec) | {
        "IOptimizationProfile__set_shape": lambda *given: shapes.append(given),
    }
    for given, expected in (
        (BuildOptions(), (4, 4, "FAST", 0)),
        (BuildOptions(optimization_level=5, tiling="none", aux_streams=2), (5, 4, "NONE", 2)),
    ):
        stand_in = owner["module"] = use(monkeypatch, bindings, **answers)
        options = given.for_engine("vae_decoder")
        TensorRTBuilder("tensorrt", "sm89").build(
            Job(spec, "fp16", tmp_path / "x.onnx", tmp_path, "decoder", options=options)
        )
        level, timings, tiling, streams = expected
        config = {name.partition(".")[2]: value for name, value in stand_in.given.items() if "BuilderConfig" in name}
        assert config["builder_optimization_level"] == level
        assert config["avg_timing_iterations"] == timings
        assert config["tiling_optimization_level"] == getattr(bindings.TilingOptimizationLevel, tiling)
        assert config["max_aux_streams"] == streams
        assert stand_in.given["ITensor.shape"] == (1, 4, 9, -1)
    one, other = (1, 4, 9, 16), (1, 4, 9, 12)
    own = [given for given in shapes if given[0] == "latent"]
    assert own == [("latent", one, one, one), ("latent", other, other, other)] * 2


def test_stand_ins_refuse_what_the_classes_do_not_have() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    context = StandInModule(module, {}).stand_in("IExecutionContext")
    with pytest.raises(AttributeError, match="execute_async_v4"):
        context.execute_async_v4(1)
    with pytest.raises(TypeError, match=r"execute_async_v3\(\): fits none"):
        context.execute_async_v3()
    with pytest.raises(AttributeError, match="engine cannot be set"):
        context.engine = None
    text = "f(self: C, a: list[int, str], b: E = <E.X: 0>) -> bool"
    assert check_call("C.f", text, (1,), {"b": 2}) == text
    with pytest.raises(TypeError):
        check_call("C.f", text, (1,), {"c": 2})


def test_every_cuda_call_exists(gpu: StandInCuda) -> None:
    """Against cuda-python where it is installed: it imports without a driver."""
    real = pytest.importorskip("cuda.bindings.runtime")
    cuda.describe_device(0)
    stream = cuda.Stream(0)
    event = stream.mark()
    buffer = cuda_memory.DeviceBuffer((2, 3), np.float32, stream)
    buffer.copy_from(buffer)
    buffer.numpy()
    buffer.fetch()()
    graph = Graph(stream, lambda: buffer.copy_from(buffer))
    graph.launch()
    del graph
    event.record()
    event.wait()
    assert event.seconds_since(event) == 1.5
    buffer.close()
    stream.close()
    del event
    for name, *arguments in gpu.calls:
        line = (getattr(real, name).__doc__ or "").split("\n")[0]
        assert len(arguments) == len([part for part in line[line.index("(") + 1 : -1].split(",") if part]), line
    for enumeration in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        for kind in getattr(gpu, enumeration):
            assert hasattr(getattr(real, enumeration), kind.name)
    assert real.cudaError_t.cudaSuccess == 0
    assert {"name", "major", "minor"} <= set(dir(real.cudaDeviceProp))
