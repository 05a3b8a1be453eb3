"""ONNX Runtime's CUDA provider: what every session on a GPU is told, and what is said where it does not start."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda_stand_in import StandInCuda, cudaError_t
from graph_bundles import write_graph_bundle

from latentrt.engine import onnxruntime as builder_module
from latentrt.engine.base import Job
from latentrt.engine.forms import AS_EXPORTED, CHANNELS_LAST, Form
from latentrt.engine.onnxruntime import OnnxRuntimeBuilder
from latentrt.runtime.backends import cuda, cuda_provider, identity
from latentrt.runtime.backends import onnxruntime as runner_module
from latentrt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.errors import BackendError, BuildError, LatentRTError

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
COMMON = {
    "device_id": "0",
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "fuse_conv_bias": "1",
    "arena_extend_strategy": "kSameAsRequested",
}


class Library:
    """onnxruntime-gpu; `told` holds the CUDA provider's options of every session, `starts` whether it starts.

    `entries` and `options` are what the last session was told besides, `places` the nodes: (provider, operator).
    """

    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99, ORT_DISABLE_ALL=0)

    def __init__(self, spec: ComponentSpec):
        self.spec, self.told, self.preloaded, self.starts = spec, [], 0, True
        self.entries: dict[str, str] = {}
        self.options: Any = None
        self.places: list[tuple[str, str]] = []

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcublas.so.13")

    def get_available_providers(self) -> list[str]:
        return PROVIDERS

    def SessionOptions(self) -> Any:
        self.entries = {}
        self.options = SimpleNamespace(add_session_config_entry=self.entries.__setitem__)
        return self.options

    def RunOptions(self) -> Any:
        return SimpleNamespace(add_run_config_entry=lambda name, value: None)

    def InferenceSession(self, path: Any, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        assert self.preloaded
        assert not enable_fallback, "onnxruntime would answer an error with a session on the CPU"
        (name, told), _ = providers
        assert name == PROVIDERS[0]
        self.told.append(told)
        return SimpleNamespace(
            get_providers=lambda: PROVIDERS if self.starts else PROVIDERS[1:],
            get_inputs=lambda: self.spec.inputs,
            get_outputs=lambda: self.spec.outputs,
            get_provider_graph_assignment_info=self.assigned,
            io_binding=lambda: SimpleNamespace(bind_input=lambda *_: None, bind_output=lambda *_: None),
            run_with_iobinding=self.run,
        )

    def run(self, binding: Any, options: Any) -> None:
        """As on a node of the CPU: the host waits for the stream."""
        cuda.call("cudaStreamSynchronize", 7)

    def assigned(self) -> list[Any]:
        """As onnxruntime has it: by parts of the graph."""
        assert self.entries["session.record_ep_graph_assignment_info"] == "1"
        return [
            SimpleNamespace(ep_name=provider, get_nodes=lambda kind=kind: [SimpleNamespace(op_type=kind)])
            for provider, kind in self.places
        ]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    bundle = write_graph_bundle(tmp_path, ("vae_decoder",))
    return Job(bundle.manifest.specs()["vae_decoder"], "fp16", bundle.onnx("vae_decoder"), tmp_path, "decoder")


@pytest.fixture
def library(job: Job, gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library(job.spec)
    for place in (runner_module, builder_module):
        monkeypatch.setattr(place, "load_module", lambda _name: made)
    return made


def test_sessions_that_run(library: Library, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    OnnxRuntimeBackend("onnxruntime", "cuda:0").load(job.spec, job.onnx)
    assert library.told == [COMMON | {"user_compute_stream": "7", "enable_cuda_graph": "0"}]
    assert not library.options.enable_mem_pattern, "the second run would take memory, in the capture"
    assert capsys.readouterr().out == ""


def test_work_that_cannot_be_captured_names_the_nodes_on_the_cpu(
    library: Library, job: Job, gpu: StandInCuda, caplog: pytest.LogCaptureFixture
) -> None:
    library.places = [*[(PROVIDERS[1], "ArgMax")] * 2, (PROVIDERS[0], "Conv"), (PROVIDERS[1], "Gather")]
    backend = OnnxRuntimeBackend("onnxruntime", "cuda:0")
    binding = backend.load(job.spec, job.onnx).bind(job.spec.sizes("min"))
    step = backend.record(binding.run)
    for _ in range(5):
        step()
    (record,) = caplog.records
    assert record.message.startswith("this work cannot be captured as a CUDA graph, so every step costs the host more")
    assert "vae_decoder: ONNX Runtime failed: cudaStreamSynchronize failed" in record.message
    assert record.message.endswith("vae_decoder: ONNX Runtime runs 3 nodes on the CPU: 2 ArgMax, 1 Gather")
    assert "cudaGraphLaunch" not in [name for name, *_ in gpu.calls]


def test_a_graph_does_not_outlive_its_engine(library: Library, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "run", lambda *_: None)
    backend = OnnxRuntimeBackend("onnxruntime", "cuda:0")
    engine = backend.load(job.spec, job.onnx)
    step = backend.record(engine.bind(job.spec.sizes("min")).run)
    for _ in range(2):
        step()
    engine.close()
    with pytest.raises(LatentRTError, match="vae_decoder: the engine is closed"):
        step()


def test_sessions_that_build(library: Library, job: Job, tmp_path: Path) -> None:
    builder = OnnxRuntimeBuilder("onnxruntime", "cuda-sm89")
    builder._optimise(AS_EXPORTED, job.onnx, job, tmp_path)
    builder._optimise(Form("channels last", (), CHANNELS_LAST), job.onnx, job, tmp_path)
    assert library.told == [COMMON, COMMON | CHANNELS_LAST]


def test_what_builds_are_told_is_in_their_key() -> None:
    assert identity("onnxruntime", "cuda-sm89")["options"]("unet") == "no TF32, heuristic search, fused bias"
    assert identity("onnxruntime", "cpu-x86_64-avx2")["options"]("unet") == ""


def test_a_search_that_is_asked_for(library: Library, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_provider.SEARCH_VARIABLE, "EXHAUSTIVE")
    OnnxRuntimeBackend("onnxruntime", "cuda:0").load(job.spec, job.onnx)
    assert library.told[0]["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    monkeypatch.setenv(cuda_provider.SEARCH_VARIABLE, "fast")
    message = r"^LATENTRT_CUDNN_SEARCH 'fast': must be one of HEURISTIC, EXHAUSTIVE, DEFAULT$"
    with pytest.raises(BackendError, match=message):
        OnnxRuntimeBackend("onnxruntime", "cuda:0").load(job.spec, job.onnx)


def test_a_fallback_to_the_cpu_is_an_error_that_names_the_remedy(
    library: Library, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.starts = False
    monkeypatch.setattr(cuda_provider, "_loads", lambda name: name != "libcublas.so.13")
    reason = (
        r"ONNX Runtime fell back to the CPU: the driver is there, but not CUDA's libcublas\.so\.13\. "
        r"Install them with: pip install 'latentrt\[cuda\]'$"
    )
    with pytest.raises(BackendError, match=reason):
        OnnxRuntimeBackend("onnxruntime", "cuda:0").load(job.spec, job.onnx)
    with pytest.raises(BuildError, match=reason):
        OnnxRuntimeBuilder("onnxruntime", "cuda-sm89")._optimise(AS_EXPORTED, job.onnx, job, tmp_path)


def test_a_gpu_without_a_driver(library: Library, gpu: StandInCuda) -> None:
    gpu.counted = (cudaError_t.cudaErrorInsufficientDriver, None)
    with pytest.raises(BackendError, match=r"^cuda:0: .*InsufficientDriver\. Install an NVIDIA driver for CUDA 13"):
        OnnxRuntimeBackend("onnxruntime", "cuda:0")


def test_the_loader_is_asked() -> None:
    assert cuda_provider._loads("libc.so.6")
    assert not cuda_provider._loads("libno-such-library.so.1")
