"""Attention in a TensorRT network: lets it decompose, and counts how much of it has a dedicated kernel.

TensorRT does not report which attention it fused. So one attention of each kind is built alone and must not decompose:
the build takes some hundredths of a second and fails where there is no dedicated kernel.
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
"""Smallest, optimal and largest length of unknown axes when an attention is built alone."""


@dataclass(frozen=True)
class AttentionKind:
    """The properties of an attention that determine its kernel.

    `tensors`: dtype and shape (batch, heads, length, width) of query, key, value and, if there is one, mask.
    """

    tensors: tuple[tuple[Any, tuple[int, ...]], ...]
    causal: bool
    normalisation: Any

    @property
    def is_known(self) -> bool:
        """Whether the number of heads and the widths are known; batch and lengths may be unknown."""
        return all(shape[1] != -1 and shape[3] != -1 for _, shape in self.tensors[:3])


def allow_decomposition(trt: ModuleType, network: Any) -> Counter[AttentionKind]:
    """Let every attention without a dedicated kernel run as matmul, softmax, matmul. Returns the count of each kind.

    Without this, TensorRT refuses float32 attention, unusual head widths and the VAE's single head of 512.
    """
    kinds: Counter[AttentionKind] = Counter()
    for layer in walk(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer gives the base class
            layer.attention.decomposable = True
            kinds[kind_of(layer.attention)] += 1
    return kinds


def kind_of(attention: Any) -> AttentionKind:
    """The kind of one `IAttention`."""
    tensors = [*map(attention.get_input, range(3)), attention.mask]
    described = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors if tensor is not None)
    return AttentionKind(described, attention.causal, attention.norm_op)


def attention_notes(
    trt: ModuleType, builder: Any, kinds: Counter[AttentionKind], new_config: Callable[[], Any]
) -> tuple[str, ...]:
    """A note for the build's record: how many attention layers there are, and how many of them decompose."""
    if not kinds:
        return ()
    known = {kind: count for kind, count in kinds.items() if kind.is_known}
    with silent_stderr():
        split = sum(count for kind, count in known.items() if not has_kernel(trt, builder, new_config(), kind))
    unknown = kinds.total() - sum(known.values())
    rest = f", of unknown head size: {unknown}" if unknown else ""
    return (f"attention layers: {kinds.total()}, decomposed for want of a dedicated kernel: {split}{rest}",)


def has_kernel(trt: ModuleType, builder: Any, config: Any, kind: AttentionKind) -> bool:
    """Whether TensorRT builds an attention of this kind without decomposing it; `config` must have no profile yet."""
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
    """A shape with its unknown axes replaced: by the smallest (`which` = 0), optimal (1) or largest (2) lengths."""
    return tuple(size if size != -1 else (BATCH if axis == 0 else LENGTH)[which] for axis, size in enumerate(shape))


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what native code writes to stderr: TensorRT's compiler reports missing kernels there, not in the log."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
