"""Builds TensorRT and TensorRT-RTX engines: one code path, strongly typed, with the profiles of the spec.

TensorRT is called directly. Polygraphy's loaders choose between `tensorrt` and `tensorrt_rtx` once per process, by an
environment variable, and use a logger of their own; latentrt uses both modules in one process.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from latentrt.engine.attention import allow_decomposition, attention_notes
from latentrt.engine.base import Built, Job
from latentrt.engine.checks import check_ports, check_precision
from latentrt.engine.inspection import inspect_engine
from latentrt.engine.network import count_layers, fix_lengths, heavy_layers, inputs, outputs, strongly_typed
from latentrt.engine.progress import monitor
from latentrt.runtime.backends.registry import ACTIVATION_RESIZE, load_module
from latentrt.runtime.backends.targets import RTX_DEFAULT, capabilities
from latentrt.runtime.backends.tensorrt_log import first_error, tensorrt_log
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.specs import Dims, Port
from latentrt.runtime.cache import cache_folder, write_atomically
from latentrt.runtime.errors import BuildError

logger = logging.getLogger(__name__)


class TensorRTBuilder:
    """Builds with `tensorrt` for this machine's GPU, or with `tensorrt-rtx` for any target, without a GPU."""

    def __init__(self, backend: str, target: str):
        self.trt = load_module(backend)
        self.rtx = backend == "tensorrt-rtx"
        self.target = target
        self.log = tensorrt_log(self.trt)

    def build(self, job: Job) -> Built:
        """Parse, check, build and inspect one component."""
        self.log.errors.clear()
        builder = self.trt.Builder(self.log)
        job.report("parsing")
        network, parser = self._parse(builder, job)
        fix_lengths(network, job.spec)
        kinds = allow_decomposition(self.trt, network)
        check_ports(job.spec, inputs(network), outputs(network))
        check_precision(job.spec, job.precision, heavy_layers(network), job.float32_layers)
        counts = count_layers(network)
        with self._config(builder, job) as config:
            plan = self._serialize(builder, network, config, job)
        del parser  # it owns the weights that the network refers to
        name = f"{job.stem}.engine"
        (job.folder / name).write_bytes(plan)
        notes = attention_notes(self.trt, builder, kinds, lambda: self._new_config(builder))
        return Built((name,), counts, (*notes, *inspect_engine(self.trt, self.log, plan, job.spec)))

    def _parse(self, builder: Any, job: Job) -> tuple[Any, Any]:
        """The network of an ONNX file, and the parser, which must outlive it."""
        network = builder.create_network(strongly_typed(self.trt))
        parser = self.trt.OnnxParser(network, self.log)
        # Data files are found beside the ONNX file only when its path is absolute.
        if not parser.parse_from_file(str(job.onnx.absolute())):
            errors = "; ".join(parser_errors(parser, self.log))
            raise BuildError(f"{job.spec.name}: {job.onnx} cannot be parsed: {errors}")
        return network, parser

    @contextmanager
    def _config(self, builder: Any, job: Job) -> Iterator[Any]:
        """The config of one build with its profiles, options and timing cache, which is saved at the end.

        TensorRT-RTX chooses kernels on the user's machine, so it has neither options for the search nor timings.
        """
        config = self._new_config(builder)
        for dims in job.spec.profiles:
            config.add_optimization_profile(profile(builder, job.spec.inputs, dims))
        if self.rtx:
            yield config
            return
        set_options(self.trt, config, job.options)
        file = cache_folder() / "timing" / f"tensorrt-{self.trt.__version__}-{self.target}.cache"
        load_timing_cache(config, file)
        yield config
        save_timing_cache(config, file)

    def _new_config(self, builder: Any) -> Any:
        """A config for the target, without a profile."""
        config = builder.create_builder_config()
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        # If you ask for fp32, you get fp32: float32 layers would otherwise run in TF32.
        config.clear_flag(self.trt.BuilderFlag.TF32)
        # Otherwise small pictures would need the activation memory of the largest.
        if (resize := getattr(self.trt.PreviewFeature, ACTIVATION_RESIZE, None)) is not None:
            config.set_preview_feature(resize, True)
        if self.rtx:
            # We provide the activation memory, which also lets a step be captured as a CUDA graph.
            config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            set_target(self.trt, config, self.target)
        return config

    def _serialize(self, builder: Any, network: Any, config: Any, job: Job) -> Any:
        """Build the engine. Raises the first error that TensorRT logged, or the exception of the progress callback."""
        watch = monitor(self.trt, job.report)
        config.progress_monitor = watch
        plan = builder.build_serialized_network(network, config)
        if watch.error is not None:
            raise watch.error
        if plan is None:
            raise BuildError(f"{job.spec.name}: TensorRT cannot build it: {first_error(self.log, 'it gave no reason')}")
        return plan


def parser_errors(parser: Any, log: Any) -> list[str]:
    """Every error of the parser with its node, or the first error that was logged."""
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    texts = [
        f"node {error.node_name() or error.node()} ({error.node_operator()}): {' '.join(error.desc().split())}"
        for error in found
    ]
    return texts or [first_error(log, "TensorRT gave no reason")]


def profile(builder: Any, inputs: Sequence[Port], dims: Dims) -> Any:
    """An optimisation profile: minimum, optimum and maximum shape of every input for these ranges."""
    shapes = builder.create_optimization_profile()
    bounds = [{name: getattr(dim, which) for name, dim in dims.items()} for which in ("min", "opt", "max")]
    for port in inputs:
        shapes.set_shape(port.name, *map(port.shape, bounds))
    return shapes


def set_options(trt: ModuleType, config: Any, options: BuildOptions) -> None:
    """Tell the builder how hard to search, and on how many streams the engine may run; `options` has no defaults."""
    config.builder_optimization_level = options.optimization_level
    config.avg_timing_iterations = options.timing_iterations
    config.tiling_optimization_level = getattr(trt.TilingOptimizationLevel, str(options.tiling).upper())
    config.max_aux_streams = options.aux_streams


def set_target(trt: ModuleType, config: Any, target: str) -> None:
    """Set the compute capabilities to build for, or keep TensorRT-RTX's portable default.

    Raises:
        BuildError: TensorRT-RTX does not know the target.
    """
    if target == RTX_DEFAULT:
        return
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    listed = capabilities(target)
    if not set(listed) <= set(known):
        allowed = ", ".join([RTX_DEFAULT, *known])
        raise BuildError(
            f"target {target}: TensorRT-RTX {trt.__version__} builds for {allowed}, or several as in sm86+sm89"
        )
    config.num_compute_capabilities = len(listed)
    for number, name in enumerate(listed):
        if not config.set_compute_capability(known[name], number):
            raise BuildError(f"target {target}: TensorRT-RTX {trt.__version__} refuses {name} in it")


def save_timing_cache(config: Any, file: Path) -> None:
    """Keep the kernel timings of a build; a system that refuses the file costs no engine."""
    try:
        write_atomically(file, config.get_timing_cache().serialize())
    except OSError as error:
        logger.warning("%s: cannot be written, so the next build times its kernels again: %s", file, error)


def load_timing_cache(config: Any, file: Path) -> None:
    """Give the config the kernel timings of earlier builds; a file that does not match is deleted."""
    try:
        kept = file.read_bytes() if file.is_file() else b""
    except OSError as error:
        logger.warning("%s: cannot be read, so kernels are timed anew: %s", file, error)
        kept = b""
    if kept:
        cache = config.create_timing_cache(kept)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return
        logger.info("%s: another TensorRT or GPU wrote it, so kernels are timed anew", file)
        file.unlink(missing_ok=True)
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
