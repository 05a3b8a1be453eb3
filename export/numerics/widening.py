"""Networks that hold their weights in fp16 and compute in float32: half the memory, and the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def widened(network: nn.Module) -> Iterator[None]:
    """Give every layer float32 weights while it runs, and its own ones back when it is done.

    A network whose weights are float32 already is left alone.
    """
    layers = [module for module in network.modules() if next(_narrow(module), None) is not None]
    hooks = [layer.register_forward_pre_hook(_widen, prepend=True) for layer in layers]
    hooks += [layer.register_forward_hook(_narrow_again, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


KEPT = "latentrt_narrow_weights"


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
    """Whether a weight was too large for the dtype that the network was loaded in."""
    return any(not parameter.isfinite().all() for parameter in network.parameters())
