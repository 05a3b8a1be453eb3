"""Networks that hold their weights in fp16 and compute in float32: half the memory, and the same numbers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def widened(network: nn.Module) -> Iterator[None]:
    """Give every layer float32 weights while it runs, and its fp16 ones back afterwards.

    A network whose weights are float32 already is left alone.
    """
    with ExitStack() as hooks:
        for layer in network.modules():
            if next(_narrow(layer), None) is not None:
                hooks.enter_context(layer.register_forward_pre_hook(_widen, prepend=True))
                hooks.enter_context(layer.register_forward_hook(_narrow_again, always_call=True))
        yield


KEPT = "latentrt_narrow_weights"
"""Attribute in which a layer keeps its fp16 weights while it runs."""


def _widen(layer: nn.Module, _inputs: Any) -> None:
    kept = [(tensor, tensor.data) for tensor in _narrow(layer)]
    setattr(layer, KEPT, kept)
    for tensor, values in kept:
        tensor.data = values.float()


def _narrow_again(layer: nn.Module, _inputs: Any, _output: Any) -> None:
    for tensor, values in layer.__dict__.pop(KEPT, ()):
        tensor.data = values


def _narrow(layer: nn.Module) -> Iterator[Tensor]:
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    yield from (tensor for tensor in own if tensor.dtype == torch.float16)


def overflows(network: nn.Module) -> bool:
    """Whether a weight was too large for the dtype in which the network was loaded."""
    return any(not parameter.isfinite().all() for parameter in network.parameters())
