"""Passes over ONNX graphs, one per file. `passes_for` lists those that run before the U-Net is split."""

import logging
from collections.abc import Callable, Iterable

import onnx_ir as ir
from onnx_ir.passes import PassResult

from latentrt.engine.passes.flat_attention import flatten_attention
from latentrt.engine.passes.group_norm import use_instance_norm
from latentrt.engine.passes.lengths import fold_lengths

logger = logging.getLogger(__name__)

Pass = Callable[[ir.Model], PassResult]

EVERYWHERE: tuple[Pass, ...] = (fold_lengths,)
ON_THE_CPU: tuple[Pass, ...] = (flatten_attention, use_instance_norm)
"""Measured to be faster in ONNX Runtime on the CPU. TensorRT recognises attention by its heads and has group norms."""


def passes_for(target: str) -> tuple[Pass, ...]:
    """The passes that a U-Net for this target goes through before it is split, in order."""
    return EVERYWHERE + (ON_THE_CPU if target.startswith("cpu") else ())


def apply(passes: Iterable[Pass], model: ir.Model, name: str) -> bool:
    """Run passes over a component's graph and log how many nodes each saves. Returns whether any changed the graph."""
    changed = False
    for change in passes:
        before = len(model.graph)
        changed |= change(model).modified
        logger.info("%s: %s saves %d nodes", name, change.__name__, before - len(model.graph))
    return changed
