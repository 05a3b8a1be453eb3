"""Float32 islands: modules of an fp16 network that run in float32, with the casts around them in the graph."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from latentrt.export.ranges import Run, logits_name
from latentrt.export.vae_signals import UNSCALED, Signals

FP16_MAX = 65504.0
HEADROOM = 4.0
"""How much larger than over the samples a value may be in use."""

LIMIT = FP16_MAX / HEADROOM

ROUNDED = (nn.Conv2d, nn.Linear, nn.GroupNorm, ResnetBlock2D, Attention)
"""Whose outputs an fp16 network stores, as far as they can overflow: an activation's is no larger than its input's."""


class Float32(nn.Module):
    """A module that stays in float32 whatever dtype the network around it is cast to.

    `narrow`: its output goes back to fp16; otherwise the next module is an island too and takes it as it is.
    """

    def __init__(self, inner: nn.Module, narrow: bool):
        super().__init__()
        self.inner = inner
        self.narrow = narrow

    def forward(self, values: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """The inner module's output, from and to the dtype of its surroundings."""
        output: Tensor = self.inner(values.float(), *arguments, **named)
        return output.half() if self.narrow else output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32":
        return self  # what casts the whole network passes by


def find_islands(signals: Signals, ranges: Mapping[str, float]) -> dict[str, bool]:
    """The fewest modules that must run in float32, and for each whether its output goes back to fp16.

    1. A norm whose output or weights are too large, and the projections behind it: SiLU lies between, which keeps no
       scale, so the large values must reach the projection as they are.
    2. An attention whose norm, queries, keys or logits are too large, whole.
    3. A projection whose weights are too large.
    """
    islands: dict[str, bool] = {}
    for name in signals.attentions:
        parts = (f"{name}.{part}" for part in ("group_norm", "to_q", "to_k", "to_v", "to_out.0"))
        if ranges[logits_name(name)] > LIMIT or any(not _fits(signals.network, part, ranges) for part in parts):
            islands[name] = True
    inside = tuple(f"{name}." for name in islands)
    for norm in signals.norms:
        if not norm.module.startswith(inside) and not _fits(signals.network, norm.module, ranges):
            islands |= {norm.module: False, **dict.fromkeys(norm.readers, True)}
    for projection in signals.projections:
        known = projection.module in islands or projection.module.startswith(inside)
        checked = ranges if projection.target != UNSCALED else {}
        if not known and not _fits(signals.network, projection.module, checked):
            islands[projection.module] = True
    return islands


def _fits(network: nn.Module, name: str, ranges: Mapping[str, float]) -> bool:
    weights = network.get_submodule(name).parameters()
    return ranges.get(name, 0.0) <= LIMIT and all(weight.abs().amax().item() <= FP16_MAX for weight in weights)


def place_islands(network: nn.Module, islands: Mapping[str, bool]) -> int:
    """Make these modules islands; returns how many convolutions, matrix products and attentions they hold."""
    layers = 0
    for name, narrow in islands.items():
        module = network.get_submodule(name)
        layers += sum(isinstance(part, nn.Conv2d | nn.Linear | Attention) for part in module.modules())
        parent = network.get_submodule(name.rpartition(".")[0])
        # Downsample2D holds its convolution under two names.
        island = Float32(module, narrow)
        for key in [key for key, child in parent._modules.items() if child is module]:
            setattr(parent, key, island)
    return layers


def run_rounded(network: nn.Module, run: Run, samples: Iterable[Tensor]) -> list[Tensor]:
    """The outputs of an fp16 network, from float32 arithmetic: torch has no fast fp16 convolution for CPUs.

    Weights, inputs and the outputs of `ROUNDED` are rounded to fp16; sums are float32, as on tensor cores. The
    network's weights stay rounded.
    """
    # Not diffusers' own `to`, which warns about keeping modules in float32.
    nn.Module.to(nn.Module.to(network, torch.float16), torch.float32)
    with torch.no_grad(), _rounding(network):
        return [run(sample.half().float()) for sample in samples]


@contextmanager
def _rounding(network: nn.Module) -> Iterator[None]:
    islands = [module for module in network.modules() if isinstance(module, Float32)]
    inside = {part for island in islands for part in island.inner.modules()}
    rounded = [module for module in network.modules() if isinstance(module, ROUNDED) and module not in inside]
    rounded += [island for island in islands if island.narrow]
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: output.half().float()) for module in rounded]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
