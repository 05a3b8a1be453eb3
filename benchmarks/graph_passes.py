"""Measures how much each graph pass speeds up a U-Net or a VAE in ONNX Runtime on the CPU, in turns in one process.

    python benchmarks/graph_passes.py BUNDLE [--component NAME] [--size PIXELS] [--images N] [--runs N] [--threads N]

`build-engine` applies hoisting, flat attention and instance norms. Merging the products and ONNX Runtime's own
attention operator are included as alternatives that were not faster.

Prints a table (milliseconds per step: smallest, median, quartiles; ratio to the whole U-Net, run by run), one row per
variant, and one JSON line at the end. With `--threads 1` the thread's own processor time is measured, which leaves out
the time that other processes take; otherwise wall time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.benchmarks.harness import in_turns
from latentrt.benchmarks.summary import ratios
from latentrt.engine.onnxruntime import PROVIDERS
from latentrt.engine.passes.flat_attention import flatten_attention
from latentrt.engine.passes.group_norm import use_instance_norm
from latentrt.engine.passes.hoist import hoist
from latentrt.engine.passes.rewriting import MICROSOFT, add_constant, replace_uses
from latentrt.runtime.backends.onnxruntime import LOG_ERRORS_ONLY, STOP_SPINNING
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.specs import DTYPES
from latentrt.runtime.bundle.unet_parts import LOOP_INPUTS, WHOLE


def main() -> None:
    """Measure every variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--component", default=WHOLE, help="unet, vae_decoder or vae_encoder")
    parser.add_argument("--size", type=int, default=0, help="pixels; default: the bundle's own")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    file = bundle.onnx(arguments.component)
    size = (arguments.size or bundle.manifest.model.native_size) // bundle.manifest.model.latent_scale
    sizes = {"rows": 2 * arguments.images, "tokens": 77, "latent_height": size, "latent_width": size}
    sizes["vae_images"] = arguments.images
    draw = np.random.default_rng(0)
    feeds = {}
    for port in bundle.manifest.specs()[arguments.component].inputs:
        values = draw.standard_normal(port.shape(sizes))
        feeds[port.name] = (100 * np.abs(values) if port.name in ("timestep", "time_ids") else values).astype(
            DTYPES[bundle.manifest.precision] if port.dtype != "float32" else "float32"
        )
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name, (hoisted, _) in RECIPES.items() if arguments.component == WHOLE or not hoisted]
        variants = {name: Variant(name, file, Path(folder), feeds, arguments.threads) for name in names}
    times = in_turns({name: variant.milliseconds for name, variant in variants.items()}, arguments.runs)
    report(variants, times, vars(arguments) | sizes)


def merge_projections(model: ir.Model) -> None:
    """Merge the matrix products of one tensor with several weights into one product and a `Split`."""
    groups: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if node.op_type == "MatMul" and (weight := node.inputs[1]) and weight.is_initializer() and node.inputs[0]:
            groups[node.inputs[0]].append(node)
    for value, nodes in groups.items():
        if len(nodes) < 2:
            continue
        weights = [node.inputs[1].const_value.numpy() for node in nodes]  # type: ignore[union-attr]
        merged = add_constant(model.graph, f"{value.name}_merged", np.concatenate(weights, axis=1))
        widths = np.array([weight.shape[1] for weight in weights], np.int64)
        split = add_constant(model.graph, f"{value.name}_widths", widths)
        product = ir.node("MatMul", [value, merged], name=f"{value.name}_product")
        parts = ir.node("Split", [product.outputs[0], split], {"axis": -1}, num_outputs=len(nodes))
        product.outputs[0].name = f"{value.name}_product"
        for output, node in zip(parts.outputs, nodes, strict=True):
            output.name = f"{node.outputs[0].name}_part"
            replace_uses(node.outputs[0], output)
        model.graph.insert_before(nodes[0], [product, parts])
        model.graph.remove(nodes, safe=True)
    RemoveUnusedNodesPass()(model)


def use_multi_head_attention(model: ir.Model) -> None:
    """Replace `Attention` on 3-D tensors by ONNX Runtime's own operator, which has another kernel."""
    for node in [node for node in model.graph if "q_num_heads" in node.attributes]:
        heads = {"num_heads": node.attributes["q_num_heads"].as_int()}
        made = ir.node("MultiHeadAttention", list(node.inputs), heads, domain=MICROSOFT)
        made.outputs[0].name = f"{node.outputs[0].name}_own"
        model.graph.insert_after(node, made)
        replace_uses(node.outputs[0], made.outputs[0])
        model.graph.remove(node, safe=True)
    model.graph.opset_imports[MICROSOFT] = 1


Pass = Callable[[ir.Model], object]
RECIPES: dict[str, tuple[bool, tuple[Pass, ...]]] = {
    "whole": (False, ()),
    "hoisted": (True, ()),
    "products merged": (False, (merge_projections,)),
    "attention flat": (False, (flatten_attention,)),
    "attention flat, instance norms": (False, (flatten_attention, use_instance_norm)),
    "hoisted, products merged": (True, (merge_projections,)),
    "hoisted, attention flat": (True, (flatten_attention,)),
    "hoisted, attention flat, instance norms": (True, (flatten_attention, use_instance_norm)),
    "the same, another attention kernel": (True, (flatten_attention, use_multi_head_attention, use_instance_norm)),
}
"""For each variant, whether the graph is split, and the passes that run before that."""


class Variant:
    """One variant of the network: a session for what runs on every step, after one run of its prologue, if any."""

    def __init__(self, name: str, file: Path, folder: Path, feeds: dict[str, Any], threads: int):
        model = ir.load(file)
        hoisted, passes = RECIPES[name]
        for change in passes:
            change(model)
        self.prologue_ms = 0.0
        self.clock = time.thread_time if threads == 1 else time.perf_counter
        if hoisted and (split := hoist(model, LOOP_INPUTS)):
            prologue = open_session(split.prologue, folder / f"{name} prologue.onnx", threads)
            given = {value.name: feeds[value.name] for value in prologue.get_inputs()}
            values = prologue.run(None, given)
            self.prologue_ms = min(milliseconds(lambda: prologue.run(None, given), self.clock) for _ in range(10))
            feeds = feeds | dict(zip(split.interface, values, strict=True))
            model = split.body
        self.nodes = len(model.graph)
        self.session = open_session(model, folder / f"{name}.onnx", threads)
        self.feeds = {value.name: feeds[value.name] for value in self.session.get_inputs()}
        self.output = self.session.run(None, self.feeds)[0]

    def milliseconds(self) -> float:
        """Milliseconds of one step."""
        return milliseconds(lambda: self.session.run(None, self.feeds), self.clock)


def open_session(model: ir.Model, file: Path, threads: int) -> Any:
    """A session that optimises a model as `build-engine` does."""
    ir.save(model, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_ERRORS_ONLY
    options.add_session_config_entry(*STOP_SPINNING)
    return onnxruntime.InferenceSession(file, options, providers=PROVIDERS["cpu"])


def milliseconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Milliseconds of one call."""
    started = clock()
    run()
    return 1e3 * (clock() - started)


def report(variants: dict[str, Variant], times: dict[str, list[float]], conditions: dict[str, Any]) -> None:
    """Print the table and the JSON line."""
    rows = {}
    whole = variants["whole"]
    for name, found in times.items():
        low, median, high = statistics.quantiles(found, n=4)
        error = float(np.abs(variants[name].output.astype("f8") - whole.output.astype("f8")).max())
        rows[name] = {
            "nodes": variants[name].nodes,
            "min_ms": round(min(found), 2),
            "median_ms": round(median, 2),
            "quartiles_ms": [round(low, 2), round(high, 2)],
            "ratio_of_minima": round(min(found) / min(times["whole"]), 4),
            "median_ratio": round(statistics.median(ratios(found, times["whole"])), 4),
            "prologue_ms": round(variants[name].prologue_ms, 2),
            "max_abs_difference": error,
        }
        print(f"{name:38}", *(f"{key} {value}" for key, value in rows[name].items()), sep="  ")
    print(json.dumps({"conditions": conditions, "variants": rows}, default=str))


if __name__ == "__main__":
    main()
