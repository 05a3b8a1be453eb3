"""Attention in a TensorRT network: allowed to decompose, and counted by whether it has a dedicated kernel.

TensorRT does not say which attention it fused, so one attention of each kind is built by itself, without leave to
decompose: a build of some hundredths of a second, which fails where no dedicated kernel serves it.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from latentrt.engine.network import strongly_typed, walk

BATCH, LENGTH = (1, 2, 8), (64, 256, 1024)
"""Smallest, best and largest of the axes that may be unknown when an attention is built by itself."""


@dataclass(frozen=True)
class Kind:
    """What decides about an attention's kernel. `tensors`: dtype and shape (batch, heads, length, width) of query, key,
    value and, if it has one, mask.
    """

    tensors: tuple[tuple[Any, tuple[int, ...]], ...]
    causal: bool
    normalisation: Any

    @property
    def is_known(self) -> bool:
        """Whether heads and widths are known; batch and lengths need not be."""
        return all(shape[1] != -1 and shape[3] != -1 for _, shape in self.tensors[:3])


def allow_decomposition(trt: ModuleType, network: Any) -> Counter[Kind]:
    """Let every attention run as matmul, softmax, matmul where no dedicated kernel serves it; counts their kinds.

    Without this TensorRT refuses float32 attention, odd head sizes and the VAE's single head of 512.
    """
    kinds: Counter[Kind] = Counter()
    for layer in walk(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer gives the base class
            layer.attention.decomposable = True
            kinds[kind_of(layer.attention)] += 1
    return kinds


def kind_of(attention: Any) -> Kind:
    """The kind of one `IAttention`."""
    tensors = [*map(attention.get_input, range(3)), attention.mask]
    described = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors if tensor is not None)
    return Kind(described, attention.causal, attention.norm_op)


def attention_notes(
    trt: ModuleType, builder: Any, kinds: Counter[Kind], new_config: Callable[[], Any]
) -> tuple[str, ...]:
    """For the build's record: how many attention layers there are, and how many of them decompose."""
    if not kinds:
        return ()
    known = {kind: count for kind, count in kinds.items() if kind.is_known}
    with silent_stderr():
        split = sum(count for kind, count in known.items() if not has_kernel(trt, builder, new_config(), kind))
    unknown = kinds.total() - sum(known.values())
    rest = f", of unknown head size: {unknown}" if unknown else ""
    return (f"attention layers: {kinds.total()}, decomposed for want of a dedicated kernel: {split}{rest}",)


def has_kernel(trt: ModuleType, builder: Any, config: Any, kind: Kind) -> bool:
    """Whether TensorRT builds one attention of this kind without decomposing it, by a config without a profile."""
    network = builder.create_network(strongly_typed(trt))
    profile = builder.create_optimization_profile()
    inputs = []
    for number, (dtype, shape) in enumerate(kind.tensors):
        inputs.append(network.add_input(f"input{number}", dtype, shape))
        profile.set_shape(f"input{number}", *(known_shape(shape, which) for which in range(3)))
    attention = network.add_attention(*inputs[:3], kind.normalisation, kind.causal)
    if len(inputs) == 4:
        attention.mask = inputs[3]
    network.mark_output(attention.get_output(0))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


def known_shape(shape: tuple[int, ...], which: int) -> tuple[int, ...]:
    """A shape whose unknown axes are the smallest, best or largest of the probe's profile."""
    return tuple(size if size != -1 else (BATCH if axis == 0 else LENGTH)[which] for axis, size in enumerate(shape))


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr: TensorRT's compiler reports a missing kernel there, past every logger."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
