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
from latentrt.runtime.backends import cuda_provider, identity
from latentrt.runtime.backends import onnxruntime as runner_module
from latentrt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.errors import BackendError, BuildError

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
COMMON = {
    "device_id": "0",
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "fuse_conv_bias": "1",
    "arena_extend_strategy": "kSameAsRequested",
}


class Library:
    """onnxruntime-gpu; `told` holds the CUDA provider's options of every session, `starts` whether it starts."""

    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99, ORT_DISABLE_ALL=0)

    def __init__(self, spec: ComponentSpec):
        self.spec, self.told, self.preloaded, self.starts = spec, [], 0, True
        self.refuses_graphs = False

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcublas.so.13")

    def get_available_providers(self) -> list[str]:
        return PROVIDERS

    def SessionOptions(self) -> Any:
        return SimpleNamespace(add_session_config_entry=lambda name, value: None)

    def InferenceSession(self, path: Any, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        assert self.preloaded
        assert not enable_fallback, "onnxruntime would answer an error with a session on the CPU"
        (name, told), _ = providers
        assert name == PROVIDERS[0]
        self.told.append(told)
        if self.refuses_graphs and told.get("enable_cuda_graph") == "1":
            raise RuntimeError("this session cannot use the graph capture feature")
        return SimpleNamespace(
            get_providers=lambda: PROVIDERS if self.starts else PROVIDERS[1:],
            get_inputs=lambda: self.spec.inputs,
            get_outputs=lambda: self.spec.outputs,
        )


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
    assert library.told == [COMMON | {"user_compute_stream": "7", "enable_cuda_graph": "1"}]
    assert capsys.readouterr().out == ""


def test_a_session_without_graphs_is_told_the_same(library: Library, job: Job) -> None:
    library.refuses_graphs = True
    assert not OnnxRuntimeBackend("onnxruntime", "cuda:0").load(job.spec, job.onnx).captures
    first, second = library.told
    assert first | {"enable_cuda_graph": "0"} == second


def test_sessions_that_build(library: Library, job: Job, tmp_path: Path) -> None:
    builder = OnnxRuntimeBuilder("onnxruntime", "cuda-sm89")
    builder._optimise(AS_EXPORTED, job.onnx, job, tmp_path)
    builder._optimise(Form("channels last", (), CHANNELS_LAST), job.onnx, job, tmp_path)
    assert library.told == [COMMON, COMMON | CHANNELS_LAST]


def test_what_builds_are_told_is_in_their_key() -> None:
    assert identity("onnxruntime", "cuda-sm89")["options"] == "no TF32, heuristic search, fused bias"
    assert identity("onnxruntime", "cpu-x86_64-avx2")["options"] == ""


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
