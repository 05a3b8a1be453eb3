"""Times the trace of a network with and without what makes it quick: a paused collector, a clean-up in linear time.

    python benchmarks/trace_time.py CHECKPOINT [--component unet] [--rounds 3]

Random weights, which do not matter. Prints the processor seconds of every way in every round, and one JSON line: their
medians as ratios to the first way, which is torch's and onnxscript's own. Fails where the graphs differ.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from statistics import median
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

WAYS = ("neither", "collector paused", "own clean-up", "both")


def main() -> None:
    """Trace in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--component", default="unet", choices=MODULES)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    run = tracer(Checkpoint.open(arguments.checkpoint, random_seed=0), arguments.component)
    run("both")  # imports, registries
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    graphs = set()
    for _ in range(arguments.rounds):
        for way in WAYS:
            started = time.process_time()
            model = run(way)
            seconds[way].append(time.process_time() - started)
            graphs.add(tuple(f"{node.op_type} {node.inputs} {node.outputs}" for node in model.graph))
            print(f"{way}: {seconds[way][-1]:.2f} s, {len(model.graph)} nodes", flush=True)
    if len(graphs) != 1:
        raise SystemExit("the graphs differ")
    first = median(seconds["neither"])
    print(json.dumps({way: round(median(values) / first, 3) for way, values in seconds.items()}))


def tracer(checkpoint: Checkpoint, component: str) -> Callable[[str], ir.Model]:
    """A function that traces a component in one of `WAYS`."""
    spec = component_specs(
        checkpoint.model, Limits.around(checkpoint.model.native_size), dict.fromkeys(MODULES, "fp32")
    )
    network = checkpoint.network(MODULES[component][0], torch.float32)
    module, vocabulary = wrap(component, network, checkpoint.model), component_vocabulary(checkpoint, component)

    def run(way: str) -> ir.Model:
        with ExitStack() as stack:
            if way in ("neither", "own clean-up"):
                stack.enter_context(patch.object(tracing, "_uncollected", nullcontext))
            if way in ("neither", "collector paused"):
                stack.enter_context(patch.object(tracing, "simplify", whole_optimiser))
            return tracing.trace(module, spec[component], vocabulary)

    return run


def whole_optimiser(model: ir.Model) -> None:
    """What `torch.onnx.export(optimize=True)` runs."""
    onnxscript.optimizer.optimize_ir(model)
    onnx_fusions.fuse(model)


if __name__ == "__main__":
    main()
