"""Prepares what contenders load, in a process of its own, so that its memory is measured separately."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.benchmarks.models import HASH_DIGITS, export_model, write_checkpoint
from latentrt.benchmarks.workers.measure import peak_memory, restrict_threads
from latentrt.engine.build import build_engines
from latentrt.export.checkpoint import Checkpoint
from latentrt.runtime.backends.registry import BACKENDS, default_target, runnable_targets
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.limits import Limits


def build_target(backend: str, device: str) -> str:
    """The target that runs on this machine's device: the portable one, as users build it, where that does.

    The backend's default if there is none, or no GPU.
    """
    own = runnable_targets(backend, "cuda:0") if device == "cuda" else ()
    return own[0] if own and BACKENDS[backend].portable_target not in own else default_target(backend)


class Prepare:
    """Makes checkpoints, bundles and engines; a call does nothing if its result exists already."""

    def checkpoint(self, *, model: str, threads: int) -> dict[str, Any]:
        """Write a model's checkpoint. Returns its `path`, and a `key` that changes with its weights."""
        restrict_threads(threads)
        started = time.perf_counter()
        path = write_checkpoint(model)
        key = Checkpoint.open(path).weights_sha256()[:HASH_DIGITS]
        return {"path": str(path), "key": key, "seconds": time.perf_counter() - started}

    def bundle(self, *, model: str, precision: str, limits: dict[str, str], threads: int) -> dict[str, Any]:
        """Export a model's bundle with these limits."""
        restrict_threads(threads)
        started = time.perf_counter()
        path = export_model(model, precision, limits)
        return {"path": str(path), "seconds": time.perf_counter() - started, "memory": peak_memory()}

    def build(
        self, *, bundle: str, backend: str, device: str, limits: dict[str, str], force: bool = False
    ) -> dict[str, Any]:
        """Build a bundle's engines for this machine's device; `force` builds all of them anew."""
        opened = Bundle.open(Path(bundle))
        started = time.perf_counter()
        served, target = Limits.model_validate(limits), build_target(backend, device)
        record = build_engines(opened, backend, served, target=target, force=force)
        seconds = time.perf_counter() - started
        components = {
            name: (engine.seconds, sum(file.size for file in engine.files.values()))
            for name, engine in record.engines.items()
        }
        layers = {name: dict(engine.layers) for name, engine in record.engines.items()}
        return {"seconds": seconds, "components": components, "layers": layers, "memory": peak_memory()}

    def component_inputs(self, *, bundle: str, component: str, sizes: dict[str, int], file: str) -> str:
        """Write sample inputs of a component to an `.npz` file. Returns the name of its first output."""
        from latentrt.export.sample_inputs import sample_inputs

        manifest = Bundle.open(Path(bundle)).manifest
        spec = manifest.specs(manifest.limits)[component]
        tensors = sample_inputs(spec, {name: sizes[name] for name in spec.dims}, 0)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return spec.outputs[0].name
