"""Builds ONNX Runtime engines: the optimised graph is saved, so that a session starts without optimising again."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from latentrt.engine import graph as graphs
from latentrt.engine.base import Built, Job
from latentrt.engine.checks import check_ports, check_precision
from latentrt.engine.forms import Form, forms_of
from latentrt.engine.trial import Trial
from latentrt.runtime.backends.cuda import device_count
from latentrt.runtime.backends.cuda_provider import fallback, preload, provider_options
from latentrt.runtime.backends.onnxruntime import NO_BF16
from latentrt.runtime.backends.registry import CPU_PROVIDER, CUDA_PROVIDER, load_module, runnable_targets
from latentrt.runtime.errors import BuildError

EXTERNAL_BYTES = 1024
"""Weights of this size or larger go to the data file, so that no ONNX file comes near protobuf's limit of 2 GB."""

PROVIDERS = {"cpu": (CPU_PROVIDER,), "cuda": (CUDA_PROVIDER, CPU_PROVIDER)}
"""Execution providers for each device, the preferred one first."""

EXTERNAL_INITIALIZERS = "session.optimized_model_external_initializers_"
"""Prefix of the session options that say which weights of the saved graph go to the data file."""

LOG_FATAL = 4
"""Log severity at which nothing is written to stderr in a build; failures arrive as exceptions."""


class OnnxRuntimeBuilder:
    """Optimises graphs for the CPU or the CUDA provider, as the target says."""

    def __init__(self, backend: str, target: str):
        self.backend = backend
        self.ort = load_module(backend)
        self.kind = target.partition("-")[0]
        available = self.ort.get_available_providers()
        needed = PROVIDERS.get(self.kind, ("a target that begins with cpu or cuda",))[0]
        if needed not in available:
            raise BuildError(
                f"target {target}: needs {needed}, this onnxruntime has {', '.join(available)}. For NVIDIA GPUs "
                "install: pip install 'latentrt[cuda]'"
            )
        self.device = device_for(backend, target)
        if self.kind == "cuda":
            preload(self.ort)

    def build(self, job: Job) -> Built:
        """Check one component's graph, optimise it and save the result."""
        if self.kind == "cpu" and job.spec.uses("bfloat16"):
            raise BuildError(f"{job.spec.name}: {NO_BF16}")
        job.report("checking")
        counts = check_graph(job)
        job.report("optimising")
        forms = forms_of(self.kind, job.onnx, job.folder / "forms")
        if len(forms) == 1:
            (only,) = forms
            return Built(self._optimise(*only, job, job.folder), counts)
        files, note = self._fastest(forms, job)
        return Built(files, counts, (note,))

    def _fastest(self, forms: Sequence[tuple[Form, Path]], job: Job) -> tuple[tuple[str, ...], str]:
        """Build and try every form on this machine. Returns the files of the fastest, and a note on all."""
        trial = Trial(self.backend, self.device, job.spec, job.precision)
        folder = job.folder / "trial"
        kept: tuple[str, ...] = ()
        for form, file in forms:
            job.report(f"trying {form.name}")
            folder.mkdir()
            try:
                files = self._optimise(form, file, job, folder)
            except BuildError as error:
                trial.fail(form.name, error)
            else:
                if trial.run(form.name, folder / files[0]):
                    for name in files:
                        (folder / name).replace(job.folder / name)
                    kept = files
            shutil.rmtree(folder)
        if not kept:
            raise BuildError(f"{job.spec.name}: no form of {job.onnx} runs here. {'; '.join(map(str, trial.tried))}")
        return kept, str(trial)

    def _optimise(self, form: Form, file: Path, job: Job, folder: Path) -> tuple[str, ...]:
        """Let ONNX Runtime optimise a graph: creating a session writes the files. Returns their names."""
        model, data = f"{job.stem}.onnx", f"{job.stem}.onnx.data"
        options = self.ort.SessionOptions()
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(folder / model)
        options.log_severity_level = LOG_FATAL
        options.add_session_config_entry(EXTERNAL_INITIALIZERS + "file_name", data)
        options.add_session_config_entry(EXTERNAL_INITIALIZERS + "min_size_in_bytes", str(EXTERNAL_BYTES))
        first, *others = PROVIDERS[self.kind]
        own = provider_options(self.device.partition(":")[2]) if self.kind == "cuda" else {}
        providers = [(first, own | dict(form.options)), *others]
        try:
            session = self.ort.InferenceSession(str(file.absolute()), options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions have no other base class
            if shutil.disk_usage(folder).free < file.stat().st_size:
                place = f"{folder / model}: cannot be written, its disk is full"
                raise BuildError(f"{job.spec.name}: {place}. Make room, or move the bundle") from error
            raise BuildError(f"{job.spec.name}: ONNX Runtime cannot build {file}: {error}") from error
        if session.get_providers()[0] != first:
            raise BuildError(fallback(job.spec.name))
        return (model, data) if (folder / data).is_file() else (model,)


def device_for(backend: str, target: str) -> str:
    """The device to build on: `cpu`, or `cuda:<index>` of the first GPU that runs the target's engines.

    Raises:
        BuildError: there is no such GPU.
    """
    if target.startswith("cpu"):
        return "cpu"
    found = [name for name in map("cuda:{}".format, range(device_count())) if target in runnable_targets(backend, name)]
    if not found:
        raise BuildError(
            f"target {target}: this machine has no such GPU, and ONNX Runtime's engines are built and tried on the "
            "card that they are for"
        )
    return found[0]


def check_graph(job: Job) -> Mapping[str, int]:
    """Compare an ONNX file with the spec and the precision. Returns its nodes, counted as `Type dtype`.

    Raises:
        BuildError: the file cannot be read, or a port does not match the spec.
        PrecisionError: a convolution, matmul or attention does not have the dtype of the precision.
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
