"""Measures the machine's peaks: the fastest matrix product and the fastest copy."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from latentrt.benchmarks.workers.measure import restrict_threads
from latentrt.runtime.backends import open_backend
from latentrt.runtime.bundle.specs import DTYPES, ONNX_TYPES, ComponentSpec, Precision, port

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
"""Edge of the square matrices: so large that memory traffic does not matter."""

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Size of the copies: far more than any cache holds."""

SECONDS = 3.0
"""Time spent on each measurement: on a shared machine, the fastest of many runs shows what it is capable of."""

LEAST_RUNS = 7

IR_VERSION = 11
"""The oldest IR version with opset 23; onnx's default may be too new for ONNX Runtime."""


class MachinePeaks:
    """Measures the machine on one device."""

    def measure(self, *, device: str, precision: Precision, threads: int) -> dict[str, Any]:
        """Operations and bytes per second, and how they were measured."""
        restrict_threads(threads)
        products = {"onnxruntime": onnxruntime_product(device, precision)}
        if device == "cpu" and precision == "fp32":
            products |= {"numpy": numpy_product(), "torch": torch_product(threads)}
        best = max(products, key=lambda name: products[name])
        size = PRODUCT_SIZE[device]
        copied = device_copy() if device == "cuda" else host_copy(threads)
        return {
            "tflops": {precision: products[best] / 1e12},
            "gigabytes": copied / 1e9,
            "method": f"product of {size}×{size} matrices by {best}, the fastest of {', '.join(products)}; "
            f"copy of {COPY_BYTES[device] / 1e6:.0f} MB, read and written; the fastest in {SECONDS:.0f} s of trying",
        }


def fastest(run: Callable[[], object]) -> float:
    """The least seconds of many runs, after one to warm up."""
    run()
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < LEAST_RUNS or time.perf_counter() - begun < SECONDS:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def onnxruntime_product(device: str, precision: Precision) -> float:
    """Operations per second of a MatMul in latentrt's ONNX Runtime backend."""
    size, dtype = PRODUCT_SIZE[device], DTYPES[precision]
    values = [onnx.helper.make_tensor_value_info(name, ONNX_TYPES[dtype], [size, size]) for name in "abc"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:]
    )
    model = onnx.helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", 23)])
    left, right, product = (port(name, dtype, size, size) for name in "abc")
    spec = ComponentSpec("product", (left, right), (product,), {})
    backend = open_backend("onnxruntime", "cpu" if device == "cpu" else "cuda:0")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "product.onnx"
        onnx.save(model, file)
        engine = backend.load(spec, file)
    binding = engine.bind({})

    def run() -> None:
        binding.run()
        backend.synchronize()

    seconds = fastest(run)
    engine.close()
    backend.close()
    return 2 * size**3 / seconds


def numpy_product() -> float:
    """Operations per second of a matrix product in numpy."""
    size = PRODUCT_SIZE["cpu"]
    left, product = np.ones((size, size), np.float32), np.empty((size, size), np.float32)
    return 2 * size**3 / fastest(lambda: np.matmul(left, left, out=product))


def torch_product(threads: int) -> float:
    """Operations per second of a matrix product in torch."""
    import torch

    torch.set_num_threads(threads or torch.get_num_threads())
    size = PRODUCT_SIZE["cpu"]
    left, product = torch.ones(size, size), torch.empty(size, size)
    return 2 * size**3 / fastest(lambda: torch.mm(left, left, out=product))


def host_copy(threads: int) -> float:
    """Bytes read and written per second by `threads` threads together."""
    workers = max(threads, 1)
    source = np.ones(COPY_BYTES["cpu"] // 8)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(target, workers), np.array_split(source, workers), strict=True))
    with ThreadPoolExecutor(workers) as pool:
        return 2 * source.nbytes / fastest(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))


def device_copy() -> float:
    """Bytes read and written per second on the GPU."""
    from latentrt.runtime.backends.cuda import Stream
    from latentrt.runtime.backends.cuda_memory import DeviceBuffer

    stream = Stream(0)
    source, target = (DeviceBuffer((COPY_BYTES["cuda"],), np.uint8, stream) for _ in range(2))

    def run() -> None:
        target.copy_from(source)
        stream.synchronize()

    seconds = fastest(run)
    stream.close()
    return 2 * source.nbytes / seconds
