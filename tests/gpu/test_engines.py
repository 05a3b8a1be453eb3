"""Engines on a real GPU: built, loaded, bound and run, and equal to ONNX Runtime on the CPU."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_bundles import GRAPHS, LIMITS, write_graph_bundle

from latentrt.engine.build import build_engines
from latentrt.runtime.backends import identity
from latentrt.runtime.backends.cuda import Stream, device_count
from latentrt.runtime.backends.cuda_graph import WARM_UPS
from latentrt.runtime.backends.cuda_memory import DeviceBuffer
from latentrt.runtime.backends.registry import runnable_targets
from latentrt.runtime.build_selection import select
from latentrt.runtime.errors import BackendError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not device_count(), reason="needs an NVIDIA GPU and cuda-python")]

DEVICE = "cuda:0"


SERVED = {
    "ranges": LIMITS,
    "one size": LIMITS.replace(width="128", height="64", images="1", tokens="77", vae_images="1"),
    "profiles": LIMITS.replace(profiles=["128x128", "64x192", "64:128:192x64:128:192"]),
}


@pytest.mark.parametrize("served", SERVED)
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
def test_engines_compute_what_onnxruntime_computes(tmp_path: Path, name: str, served: str) -> None:
    pytest.importorskip(name.replace("-", "_"))
    onnxruntime = pytest.importorskip("onnxruntime")
    if name == "onnxruntime" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    targets = runnable_targets(name, DEVICE)
    if not targets:
        pytest.skip(f"{name} does not serve this GPU")
    bundle = write_graph_bundle(tmp_path)
    limits = SERVED[served]
    record = build_engines(bundle, name, limits, target=targets[0])
    bundle.check_build(record, **identity(name, targets[0]))
    selection = select(bundle, name, DEVICE)
    backend = selection.open()
    for component in GRAPHS:
        spec = bundle.manifest.specs(limits)[component]
        engine = selection.load_component(backend, spec)
        session = onnxruntime.InferenceSession(bundle.onnx(component), providers=["CPUExecutionProvider"])
        for profile, which in itertools.product(spec.profiles, ("min", "opt", "max", "opt")):
            sizes = {dim: getattr(bounds, which) for dim, bounds in profile.items()}
            feeds = draw(spec, sizes)
            binding = engine.bind(sizes)
            for port, values in feeds.items():
                binding.buffers[port].write(values)
            step = backend.record(binding.run)
            for _ in range(WARM_UPS + 1):  # as it is, captured, replayed
                step()
            for port, wanted in zip(spec.outputs, session.run(None, feeds), strict=True):
                found = binding.buffers[port.name].numpy().astype("float32")
                # float16 sums over up to 1,700 products, in another order; bytes may round to the neighbour.
                np.testing.assert_allclose(
                    found, wanted.astype("float32"), rtol=2e-2, atol=1.0 if port.dtype == "uint8" else 5e-2
                )
        engine.close()
    backend.close()


def draw(spec: Any, sizes: dict[str, int]) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        port.name: generator.integers(0, 99, port.shape(sizes))
        if port.dtype == "int64"
        else generator.standard_normal(port.shape(sizes)).astype(port.numpy_dtype)
        for port in spec.inputs
    }


def test_buffers() -> None:
    stream = Stream(0)
    values = np.arange(12, dtype="float32").reshape(3, 4)
    first, second = DeviceBuffer((3, 4), "float32", stream), DeviceBuffer((3, 4), "float32", stream)
    first.write(values)
    values += 1
    second.copy_from(first)
    np.testing.assert_array_equal(second.numpy(), values - 1)
    with pytest.raises(BackendError, match=r"GB asked, .* GB free .*cudaErrorMemoryAllocation"):
        DeviceBuffer((1 << 42,), "float32", stream)
    first.close()
    first.close()
    stream.close()
