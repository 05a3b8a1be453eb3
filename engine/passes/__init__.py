"""Passes over ONNX graphs, one per file. `passes_for` lists those that run before the U-Net is split."""

import logging
from collections.abc import Callable, Iterable

import onnx_ir as ir
from onnx_ir.passes import PassResult

from latentrt.engine.passes.arg_max import use_top_k
from latentrt.engine.passes.attention_masks import simplify_masks
from latentrt.engine.passes.flat_attention import flatten_attention
from latentrt.engine.passes.gather_per_row import gather_per_row
from latentrt.engine.passes.group_norm import use_instance_norm
from latentrt.engine.passes.known_shapes import read_known_shapes
from latentrt.engine.passes.lengths import fold_lengths

logger = logging.getLogger(__name__)

Pass = Callable[[ir.Model], PassResult]

EVERYWHERE: tuple[Pass, ...] = (fold_lengths,)
ON_THE_CPU: tuple[Pass, ...] = (flatten_attention, use_instance_norm)
"""Measured to be faster in ONNX Runtime on the CPU. TensorRT recognises attention by its heads and has group norms."""

ON_CUDA: tuple[Pass, ...] = (simplify_masks, flatten_attention, gather_per_row, use_top_k, read_known_shapes)
"""After these, ONNX Runtime's CUDA provider leaves no node of our networks to the CPU, group norms apart."""

BY_DEVICE = {"cpu": ON_THE_CPU, "cuda": ON_CUDA}


def passes_for(target: str) -> tuple[Pass, ...]:
    """The passes that a U-Net for this target goes through before it is split, in order."""
    return EVERYWHERE + BY_DEVICE.get(target.partition("-")[0], ())


def apply(passes: Iterable[Pass], model: ir.Model, name: str) -> bool:
    """Run passes over a component's graph and log what each changes. Returns whether any changed the graph."""
    changed = False
    for change in passes:
        before = len(model.graph)
        if change(model).modified:
            changed = True
            logger.info("%s: %s, %d nodes become %d", name, change.__name__, before, len(model.graph))
    return changed
