"""Makes what contenders load, in a process of its own, so that its memory is its own too."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.benchmarks.models import export_model, write_checkpoint
from latentrt.benchmarks.workers.measure import peak_memory, restrict_threads
from latentrt.engine.build import build_engines
from latentrt.export.checkpoint import Checkpoint
from latentrt.runtime.backends.registry import default_target, runnable_targets
from latentrt.runtime.bundle.folder import Bundle
from latentrt.runtime.bundle.limits import Limits

KEY_DIGITS = 12


def build_target(backend: str, device: str) -> str:
    """What this machine's device runs; the backend's default where it runs none, or where there is no GPU."""
    own = runnable_targets(backend, "cuda:0") if device == "cuda" else ()
    return own[0] if own else default_target(backend)


class Prepare:
    """Checkpoints, bundles and engines; each call does nothing where the result is there already."""

    def checkpoint(self, *, model: str, threads: int) -> dict[str, Any]:
        """The model's checkpoint on disk: `path`, and a `key` that changes with its weights."""
        restrict_threads(threads)
        started = time.perf_counter()
        path = write_checkpoint(model)
        key = Checkpoint.open(path).weights_sha256()[:KEY_DIGITS]
        return {"path": str(path), "key": key, "seconds": time.perf_counter() - started}

    def bundle(self, *, model: str, precision: str, limits: dict[str, str], threads: int) -> dict[str, Any]:
        """The model's bundle for a range of requests."""
        restrict_threads(threads)
        started = time.perf_counter()
        path = export_model(model, precision, limits)
        return {"path": str(path), "seconds": time.perf_counter() - started, "memory": peak_memory()}

    def build(
        self, *, bundle: str, backend: str, device: str, limits: dict[str, str], force: bool = False
    ) -> dict[str, Any]:
        """The engines of a bundle for this machine's device; `force` builds them anew."""
        opened = Bundle.open(Path(bundle))
        started = time.perf_counter()
        record = build_engines(opened, backend, Limits(**limits), target=build_target(backend, device), force=force)
        seconds = time.perf_counter() - started
        components = {
            name: (engine.seconds, sum(file.size for file in engine.files.values()))
            for name, engine in record.engines.items()
        }
        layers = {name: dict(engine.layers) for name, engine in record.engines.items()}
        return {"seconds": seconds, "components": components, "layers": layers, "memory": peak_memory()}

    def component_inputs(self, *, bundle: str, component: str, sizes: dict[str, int], file: str) -> str:
        """Write sample inputs of one component to an `.npz` file; returns the name of its first output."""
        from latentrt.export.sample_inputs import sample_inputs

        manifest = Bundle.open(Path(bundle)).manifest
        spec = manifest.specs(manifest.limits)[component]
        tensors = sample_inputs(spec, {name: sizes[name] for name in spec.dims}, 0)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return spec.outputs[0].name
