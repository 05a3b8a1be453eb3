"""optimum-onnx as a contender; it runs in an environment of its own."""

import importlib
import json
from pathlib import Path
from typing import Any

from latentrt.benchmarks.workers.measure import (
    Clock,
    HostStamp,
    Memory,
    peak_memory,
    reset_peak_memory,
    restrict_threads,
)
from latentrt.benchmarks.workers.torch_pipeline import SCHEDULERS, draw, watch

INDEX = "model_index.json"


def pipeline_class(checkpoint: Path) -> Any:
    """Optimum's counterpart of the checkpoint's pipeline: optimum does not recognise the task of a local folder."""
    library: Any = importlib.import_module("optimum.onnxruntime")
    index = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))
    return getattr(library, f"ORT{index['_class_name']}")


class Optimum:
    """The pipeline that optimum-onnx exports and runs with ONNX Runtime."""

    def __init__(self) -> None:
        self.pipeline: Any = None
        self.clock = Clock(HostStamp, lambda: None)
        self.memory = Memory()

    def load(
        self, *, checkpoint: str, device: str, threads: int, sampler: str, exported: str, precision: str, **_others: Any
    ) -> dict[str, Any]:
        """Export the checkpoint to the folder `exported`, if that is not there yet, and load it."""
        restrict_threads(threads)
        import diffusers
        import onnxruntime
        import torch
        from optimum.version import __version__ as optimum_version

        notes = []
        if precision != "fp32":
            notes.append(f"{precision} asked; its own export gives float32 weights")
        if device == "cpu":
            torch.set_num_threads(threads or torch.get_num_threads())
        kind = pipeline_class(Path(checkpoint))
        if not (Path(exported) / INDEX).is_file():
            exporting = kind.from_pretrained(checkpoint, export=True, local_files_only=True)
            exporting.save_pretrained(exported)
            del exporting
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        pipeline = kind.from_pretrained(exported, provider=provider, session_options=options, local_files_only=True)
        pipeline.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        watch(pipeline, self.clock)
        self.pipeline = pipeline
        versions = {
            "optimum": optimum_version,
            "onnxruntime": onnxruntime.__version__,
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        }
        return {"versions": versions, "memory": peak_memory(), "notes": notes}

    def begin(self) -> None:
        """Note that the warm-up is over."""
        reset_peak_memory()

    def sample(self, *, request: dict[str, Any], picture: str | None = None) -> dict[str, Any]:
        """Time one request; its first picture is saved to `picture`."""
        timing, pictures = draw(self.pipeline, self.clock, request)
        if picture:
            pictures[0].save(picture)
        return timing | self.memory.used()
