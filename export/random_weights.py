"""Networks without weights or with random ones, to try size and speed without a download."""

import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn


def random_network(kind: Any, config: Mapping[str, Any], dtype: torch.dtype, seed: int) -> nn.Module:
    """Make a network of a diffusers or transformers class with random weights, in evaluation mode.

    Memory peaks at the weights in `dtype`. Each tensor depends on its name and the seed alone, so the same seed gives
    the same network in any precision.
    """
    network = empty_network(kind, config, dtype)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            _fill(name, parameter, generator)
    return network.eval()


def empty_network(kind: Any, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """Make a network whose weights are still to be written; memory peaks at the weights in `dtype`."""
    shapes = meta_network(kind, config)
    if any(True for _ in shapes.buffers()):
        return nn.Module.to(_construct(kind, config), dtype)  # buffers hold values that only the constructor knows
    return nn.Module.to(shapes, dtype).to_empty(device="cpu")


def meta_network(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    """Make a network that has shapes but no weights, on torch's meta device."""
    with torch.device("meta"):
        return _construct(kind, config)


def tensor_shapes(kind: Any, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor of a network, by name; remembered, for making SDXL's U-Net takes seconds even so."""
    return _tensor_shapes(kind, json.dumps(config, sort_keys=True))


@lru_cache(maxsize=8)
def _tensor_shapes(kind: Any, config: str) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in meta_network(kind, json.loads(config)).state_dict().items()}


def _construct(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    is_diffusers = hasattr(kind, "load_config")
    network: nn.Module = kind.from_config(config) if is_diffusers else kind(kind.config_class(**config))
    return network


def _fill(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    """Fill norms near 1, biases near 0, and matrices so that they keep the variance (He et al. 2015, section 2.2)."""
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim > 1:
        fan_in = 1.0 if "embedding" in name and "position" not in name else parameter[0].numel()
        parameter.copy_(noise / max(fan_in, 1.0) ** 0.5)
    elif name.endswith("weight"):
        parameter.copy_(1 + 0.1 * noise)
    else:
        parameter.copy_(0.1 * noise)
