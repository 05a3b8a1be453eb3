"""Builds ONNX Runtime's engines: the graph as its optimiser leaves it, saved so that a session starts without it."""

from collections.abc import Mapping
from typing import Any

from latentrt.engine import graph as graphs
from latentrt.engine.base import Built, Job
from latentrt.engine.checks import check_ports, check_precision
from latentrt.runtime.backends.onnxruntime import NO_BF16
from latentrt.runtime.backends.targets import load_module
from latentrt.runtime.errors import BuildError

EXTERNAL_BYTES = 1024
"""Weights from this size on go to the data file, so that no ONNX file comes near protobuf's limit of 2 GB."""

PROVIDERS = {"cpu": ("CPUExecutionProvider",), "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider")}

OPTION = "session.optimized_model_external_initializers_"

FATAL = 4
"""The log severity above which nothing is written to stderr; a failure arrives as an exception."""


class OnnxRuntimeBuilder:
    """Optimises for the CPU or the CUDA provider, whichever the target names."""

    def __init__(self, backend: str, target: str):
        self.ort = load_module(backend)
        self.device = target.partition("-")[0]
        available = self.ort.get_available_providers()
        needed = PROVIDERS.get(self.device, ("a target that begins with cpu or cuda",))[0]
        if needed not in available:
            raise BuildError(
                f"target {target}: needs {needed}, this onnxruntime has {', '.join(available)}. For NVIDIA GPUs "
                "install: pip install 'latentrt[cuda]'"
            )

    def build(self, job: Job) -> Built:
        """Check one component's graph, optimise it and save what comes out."""
        if self.device == "cpu" and job.spec.uses("bfloat16"):
            raise BuildError(f"{job.spec.name}: {NO_BF16}")
        job.report("checking")
        counts = check_graph(job)
        job.report("optimising")
        model, data = f"{job.stem}.onnx", f"{job.stem}.onnx.data"
        options = self.ort.SessionOptions()
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(job.folder / model)
        options.log_severity_level = FATAL
        options.add_session_config_entry(OPTION + "file_name", data)
        options.add_session_config_entry(OPTION + "min_size_in_bytes", str(EXTERNAL_BYTES))
        self._optimise(options, job)
        return Built((model, data) if (job.folder / data).is_file() else (model,), counts)

    def _optimise(self, options: Any, job: Job) -> None:
        """Creating a session writes the file."""
        try:
            self.ort.InferenceSession(str(job.onnx.absolute()), options, providers=list(PROVIDERS[self.device]))
        except Exception as error:  # onnxruntime's exceptions have no other base class
            raise BuildError(f"{job.spec.name}: ONNX Runtime cannot build {job.onnx}: {error}") from error


def check_graph(job: Job) -> Mapping[str, int]:
    """Compare an ONNX file with the spec and the precision; returns its nodes, counted as `Type dtype`.

    Raises:
        BuildError: not readable, or a port is not the spec's.
        PrecisionError: a convolution, matmul or attention has another dtype than the precision's.
    """
    try:
        graph = graphs.read_graph(job.onnx)
    except Exception as error:  # protobuf's and onnx's exceptions have no other base class
        raise BuildError(f"{job.spec.name}: {job.onnx} cannot be read: {error}") from error
    check_ports(
        job.spec,
        {value.name: graphs.describe(value) for value in graph.input},
        {value.name: graphs.describe(value) for value in graph.output},
    )
    check_precision(job.spec, job.precision, graphs.heavy_nodes(graph), job.float32_layers)
    return graphs.count_nodes(graph)
