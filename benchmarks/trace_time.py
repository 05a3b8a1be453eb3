"""Times the trace of a network with and without what makes it quick, in turns.

    python benchmarks/trace_time.py CHECKPOINT [--component unet] [--rounds 3]

Random weights, which do not matter. Prints the processor seconds of every way in every round, and one JSON line: their
medians as ratios to the first way, which is torch's and onnxscript's own. Fails where the graphs differ.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from statistics import median
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnxscript.rewriter import onnx_fusions

from latentrt.export import trace as tracing
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules import MODULES, component_vocabulary, wrap
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits


def whole_optimiser(model: ir.Model) -> None:
    """What `torch.onnx.export(optimize=True)` runs."""
    onnxscript.optimizer.optimize_ir(model)
    onnx_fusions.fuse(model)


TORCH: Mapping[str, Any] = {"_uncollected": nullcontext, "simplify": whole_optimiser, "lower": lambda exported: False}
"""Function of the trace -> what torch does in its place."""

WAYS: Mapping[str, tuple[str, ...]] = {
    "torch's own": tuple(TORCH),
    "collector paused": ("simplify", "lower"),
    "own clean-up": ("_uncollected", "lower"),
    "traced once": ("_uncollected", "simplify"),
    "all three": (),
}
"""Way -> what is left to torch."""


def main() -> None:
    """Trace in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--component", default="unet", choices=MODULES)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    run = tracer(Checkpoint.open(arguments.checkpoint, random_seed=0), arguments.component)
    run("all three")  # imports, registries
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    graphs = set()
    for _ in range(arguments.rounds):
        for way in WAYS:
            started = time.process_time()
            model = run(way)
            seconds[way].append(time.process_time() - started)
            graphs.add(tuple(f"{node.op_type} {[value.shape for value in node.outputs]}" for node in model.graph))
            print(f"{way}: {seconds[way][-1]:.2f} s, {len(model.graph)} nodes", flush=True)
    if len(graphs) != 1:
        raise SystemExit("the graphs differ")
    first = median(seconds["torch's own"])
    print(json.dumps({way: round(median(values) / first, 3) for way, values in seconds.items()}))


def tracer(checkpoint: Checkpoint, component: str) -> Callable[[str], ir.Model]:
    """Make a function that traces a component in one of `WAYS`."""
    limits = Limits.around(checkpoint.model.native_size)
    spec = component_specs(checkpoint.model, limits, dict.fromkeys(MODULES, "fp32"))[component]
    module = wrap(component, checkpoint.network(MODULES[component][0], torch.float32), checkpoint.model)
    vocabulary = component_vocabulary(checkpoint, component)

    def run(way: str) -> ir.Model:
        with ExitStack() as stack:
            for name in WAYS[way]:
                stack.enter_context(patch.object(tracing, name, TORCH[name]))
            return tracing.trace(module, spec, vocabulary)

    return run


if __name__ == "__main__":
    main()
