"""`latentrt doctor`: what it finds, and the remedy that it names."""

import importlib.metadata
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import run_main
from cuda_stand_in import cudaError_t
from packaging.requirements import Requirement

from latentrt.cli import doctor as module
from latentrt.cli.doctor import Finding, check_backend, check_duplicates, check_gpu, check_versions, examine
from latentrt.runtime.backends import cuda_provider

GOOD = {"numpy": "2.3.0", "onnxruntime": "1.31.0", "pillow": "12.0.0"}


@pytest.fixture
def only_path(tmp_path, monkeypatch):
    """An empty folder as the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def fake_nvidia_smi(folder, script):
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def installed(monkeypatch, versions):
    monkeypatch.setattr(module, "_installed", lambda: iter(versions.items()))


def test_both_onnxruntimes():
    (finding,) = check_duplicates(GOOD | {"onnxruntime-gpu": "1.31.0"})
    assert finding == Finding(
        "onnxruntime and onnxruntime-gpu",
        "problem",
        "both are installed, and they overwrite each other's files",
        "pip uninstall -y onnxruntime onnxruntime-gpu, then install latentrt[cpu] or latentrt[cuda]",
    )


@pytest.mark.parametrize("versions", [{}, GOOD, {"onnxruntime-gpu": "1.31.0"}])
def test_one_onnxruntime_at_most_is_fine(versions):
    assert not list(check_duplicates(versions))


def test_both_onnxruntimes_as_pip_leaves_them(monkeypatch, tmp_path):
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.31.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.0\n")
    distributions = importlib.metadata.distributions
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: distributions(path=[str(tmp_path), *sys.path]))
    assert "onnxruntime and onnxruntime-gpu" in [finding.name for finding in examine() if finding.status == "problem"]


def test_the_user_chooses_between_the_onnxruntimes():
    """An extra that brought one of them would break an environment that has the other."""
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brings = {
        extra: {name for line in lines if (name := Requirement(line).name).startswith("onnxruntime")}
        for extra, lines in extras.items()
    }
    assert {extra: names for extra, names in brings.items() if names} == {
        "cpu": {"onnxruntime"},
        "cuda": {"onnxruntime-gpu"},
    }
    for extra in ("bench", "export", "tensorrt", "tensorrt-rtx"):
        others = [Requirement(line) for line in extras[extra]]
        assert not {"cpu", "cuda"} & {found for one in others if one.name == "latentrt" for found in one.extras}


def test_the_cuda_extra_brings_cudas_libraries():
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = {Requirement(line).name: Requirement(line).extras for line in extras["cuda"]}
    assert found["onnxruntime-gpu"] == {"cuda", "cudnn"}
    assert "nvidia-cublas" in found


def test_versions_in_range():
    found = {finding.name: (finding.status, finding.detail) for finding in check_versions(GOOD | {"unrelated": "0.1"})}
    assert found == {name: ("ok", version) for name, version in GOOD.items()}


@pytest.mark.parametrize(
    ("name", "version", "needed"),
    [
        ("numpy", "1.26.4", "<3,>=2"),
        ("onnxruntime", "1.30.0", "<1.32,>=1.31"),
        ("tensorrt", "12.0.0", "<12,>=10.14"),
        ("tensorrt", "10.9.0", "<12,>=10.14"),
        ("torch", "2.12.0+cu130", "<2.14,>=2.13"),
    ],
)
def test_a_version_out_of_range(name, version, needed):
    (finding,) = check_versions({name: version})
    remedy = f"pip install '{name}{needed}'"
    assert finding == Finding(name, "problem", f"{version}, needed {needed}", remedy)


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.13.1.dev20260101"])
def test_a_local_or_early_version_counts_as_its_number(version):
    (finding,) = check_versions({"torch": version})
    assert finding.status == "ok"


def test_no_gpu(only_path):
    (finding,) = check_gpu()
    assert (finding.name, finding.status) == ("gpu", "absent")
    assert finding.remedy == "engines still build for TensorRT-RTX"


def test_two_gpus(only_path):
    lines = ("0, NVIDIA H100 80GB HBM3, 9.0, 580.65, 81559 MiB", "1, NVIDIA GeForce RTX 4090, 8.9, 580.65, 24564 MiB")
    fake_nvidia_smi(only_path, "\n".join(f"echo '{line}'" for line in lines))
    first, second = check_gpu()
    detail = "NVIDIA H100 80GB HBM3, compute capability 9.0, driver 580.65, 81559 MiB"
    assert first == Finding("gpu 0", "ok", detail)
    assert (second.name, second.status) == ("gpu 1", "ok")


@pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA-SMI has failed'", "echo 'No devices were found'"])
def test_a_driver_that_fails(only_path, script):
    fake_nvidia_smi(only_path, script)
    (finding,) = check_gpu()
    assert (finding.name, finding.status, finding.remedy) == ("gpu", "problem", "reinstall the NVIDIA driver")
    assert finding.detail.startswith("nvidia-smi fails: ")


def test_a_driver_without_a_gpu(only_path):
    fake_nvidia_smi(only_path, "true")
    (finding,) = check_gpu()
    assert (finding.name, finding.status) == ("gpu", "absent")


def test_the_model_of_the_probe_is_a_model():
    model = onnx.load_from_string(module.IDENTITY_MODEL)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(module.IDENTITY_MODEL, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)}) == [np.array([3], np.float32)]


def test_onnxruntime_works_here():
    finding = check_backend("onnxruntime")
    assert (finding.name, finding.status) == ("backend onnxruntime", "ok")
    assert finding.detail.startswith(f"{onnxruntime.__version__}, working providers: ")
    assert "CPUExecutionProvider" in finding.detail


def stand_in(providers, works):
    """onnxruntime with these providers, of which some fall back to the CPU, and some fail only when they run."""

    loaded = []

    class Session:
        def __init__(self, model, options, providers, enable_fallback):
            assert loaded, "CUDA's libraries are loaded before the first session"
            self.name = providers[0]
            if works[self.name] == "load fails":
                raise RuntimeError("cannot load libcudnn")

        def get_providers(self):
            return [self.name if works[self.name] != "falls back" else "CPUExecutionProvider"]

        def run(self, names, feeds):
            if works[self.name] == "run fails":
                raise RuntimeError("no kernel image is available")
            return [feeds["x"]]

    return SimpleNamespace(
        __version__="1.31.0",
        preload_dlls=lambda: loaded.append(1),
        get_available_providers=lambda: providers,
        SessionOptions=SimpleNamespace,
        InferenceSession=Session,
    )


DRIVER_REMEDY = "Install an NVIDIA driver for CUDA 13 (580 or newer)"


@pytest.mark.parametrize("how", ["load fails", "falls back", "run fails"])
@pytest.mark.parametrize(
    ("libraries", "detail", "remedy"),
    [
        ((), "no NVIDIA driver is installed (libcuda.so.1 cannot be loaded)", DRIVER_REMEDY),
        (
            ("libcuda.so.1", "libcudart.so.13", "libcurand.so.10"),
            "the driver is there, but not CUDA's libcublasLt.so.13, libcublas.so.13, libcudnn.so.9",
            "Install them with: pip install 'latentrt[cuda]'",
        ),
        (
            ("libcuda.so.1", *cuda_provider.LIBRARIES),
            "driver and libraries are there",
            "Run with ONNX Runtime's log on to see what it lacks",
        ),
    ],
)
def test_a_cuda_provider_that_does_not_work(monkeypatch, gpu, how, libraries, detail, remedy):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    library = stand_in(providers, {"CUDAExecutionProvider": how, "CPUExecutionProvider": "works"})
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    monkeypatch.setattr(cuda_provider, "_loads", libraries.__contains__)
    finding = check_backend("onnxruntime")
    assert finding.status == "problem"
    assert finding.detail == f"1.31.0, working providers: CPUExecutionProvider; {detail}"
    assert finding.remedy == remedy


@pytest.mark.parametrize(
    ("answer", "detail", "remedy"),
    [
        (
            (cudaError_t.cudaErrorInsufficientDriver, None),
            "the driver does not serve CUDA 13 (cudaGetDeviceCount failed: cudaErrorInsufficientDriver, "
            "cudaErrorInsufficientDriver)",
            DRIVER_REMEDY,
        ),
        ((0,), "the driver is there, but it shows no GPU to this process", "See what nvidia-smi says"),
    ],
)
def test_a_driver_without_a_gpu_that_cuda_can_use(monkeypatch, gpu, answer, detail, remedy):
    monkeypatch.setattr(cuda_provider, "_loads", lambda name: True)
    gpu.counted = answer
    assert cuda_provider.find_fault() == cuda_provider.Fault(detail, remedy)


def test_a_cuda_provider_that_works(monkeypatch):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in(providers, dict.fromkeys(providers, "works")))
    assert check_backend("onnxruntime").detail == f"1.31.0, working providers: {', '.join(providers)}"


def test_no_provider_works(monkeypatch):
    library = stand_in(["CPUExecutionProvider"], {"CPUExecutionProvider": "run fails"})
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    finding = check_backend("onnxruntime")
    assert (finding.status, finding.detail) == ("problem", "1.31.0, working providers: none")
    assert finding.remedy == "pip install --force-reinstall 'latentrt[cpu]'"


@pytest.mark.parametrize(
    ("backend", "name", "extra"),
    [
        ("onnxruntime", "onnxruntime", "cpu"),
        ("tensorrt", "tensorrt", "tensorrt"),
        ("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx"),
    ],
)
def test_a_backend_that_is_not_installed(monkeypatch, backend, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    remedy = f"pip install 'latentrt[{extra}]'"
    assert check_backend(backend) == Finding(f"backend {backend}", "absent", "not installed", remedy)


def test_the_command_without_problems(capsys, monkeypatch, only_path):
    installed(monkeypatch, GOOD)
    run = run_main(capsys, "doctor")
    assert run.exit == 0
    assert run.result["problems"] == []
    assert [found["name"] for found in run.result["findings"]][:2] == ["python", "numpy"]
    assert {"gpu", "backend onnxruntime", "backend tensorrt"} <= {found["name"] for found in run.result["findings"]}


def test_the_command_with_problems_exits_with_1_and_shows_the_remedies(capsys, monkeypatch, only_path):
    installed(monkeypatch, {"onnxruntime": "1.31.0", "onnxruntime_gpu": "1.31.0", "numpy": "1.26.4"})
    run = run_main(capsys, "doctor")
    assert run.exit == 1
    assert run.result["problems"] == ["onnxruntime and onnxruntime-gpu", "numpy"]
    for words in ("pip install 'numpy<3,>=2'", "latentrt[cpu] or", "latentrt[cuda]"):
        assert words in run.error
    assert "Traceback" not in run.stderr
