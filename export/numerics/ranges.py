"""Ranges of a network's values: the largest absolute value that enters and leaves each module, in float32."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.models.clip.modeling_clip import CLIPAttention

from latentrt.runtime.errors import NumericsError

Run = Callable[[Any], Any]
"""Runs a network over one sample, which is a tensor or several."""


class AttentionNames(NamedTuple):
    """The attributes in which a class of attention keeps its projections of queries, keys and values, and its heads."""

    projections: tuple[str, str, str]
    heads: str


ATTENTIONS: Mapping[type[nn.Module], AttentionNames] = {
    Attention: AttentionNames(("to_q", "to_k", "to_v"), "heads"),
    CLIPAttention: AttentionNames(("q_proj", "k_proj", "v_proj"), "num_heads"),
}


def logits_name(attention: str) -> str:
    """Name under which `Ranges.named` holds the largest softmax input of an attention."""
    return f"{attention}.logits"


@dataclass(frozen=True, slots=True)
class Ranges:
    """Largest absolute values by module name, in the order in which modules finish.

    `inputs` and `outputs` cover floating tensors. `logits`: products of queries and keys before any mask, scaled as the
    softmax takes them; no module outputs them.
    """

    inputs: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    logits: dict[str, float] = field(default_factory=dict)

    @property
    def named(self) -> Mapping[str, float]:
        """Outputs by module name, and logits by `logits_name`."""
        return self.outputs | {logits_name(name): largest for name, largest in self.logits.items()}


@dataclass(frozen=True, slots=True)
class Measured:
    """A network's ranges over samples, and its outputs, sample after sample."""

    ranges: Ranges
    outputs: list[Tensor]


def measure(network: nn.Module, run: Run, samples: Sequence[Any]) -> Measured:
    """Run every sample and watch every module that takes part.

    Costs one evaluation per sample and a pass over every tensor; needs no copy of the weights.

    Raises:
        NumericsError: a value is not finite even in float32.
    """
    ranges = Ranges()
    with torch.no_grad(), _watched(network, ranges):
        outputs = [tensor for sample in samples for tensor in floats(run(sample))]
    return Measured(ranges, outputs)


def floats(values: Any) -> list[Tensor]:
    """List the floating tensors of nested tuples, dicts and model outputs."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@contextmanager
def _watched(network: nn.Module, ranges: Ranges) -> Iterator[None]:
    """Keep `ranges` up to date by hooks while the block runs."""
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.enter_context(module.register_forward_hook(_hook(name, ranges), with_kwargs=True))
            if type(module) in ATTENTIONS:
                for hook in _watch_logits(module, name, ranges):
                    hooks.enter_context(hook)
        yield


def _hook(name: str, ranges: Ranges) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        _note(ranges.inputs, name, floats((inputs, named)))
        _note(ranges.outputs, name, floats(output))

    return hook


def _note(ranges: dict[str, float], name: str, tensors: list[Tensor]) -> None:
    bounds = [bound.item() for values in tensors for bound in values.aminmax()]
    if not all(map(math.isfinite, bounds)):
        raise NumericsError(
            f"{name}: gives values that are not finite in float32 already, so no precision can hold them. "
            "The weights are damaged; download the checkpoint again"
        )
    ranges[name] = max(map(abs, [ranges.get(name, 0.0), *bounds]))


def _watch_logits(attention: Any, name: str, ranges: Ranges) -> list[Any]:
    """Add hooks to the projections of queries and keys that form their product, image by image and head by head."""
    names = ATTENTIONS[type(attention)]
    to_query, to_key, _ = names.projections
    heads: int = getattr(attention, names.heads)
    projected: dict[str, Tensor] = {}

    def multiply(projection: str, output: Tensor) -> None:
        projected[projection] = output
        if len(projected) < 2:
            return
        queries, keys = projected.pop(to_query), projected.pop(to_key)
        width = keys.shape[-1] // heads
        for query, key in zip(queries, keys, strict=True):
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                _note(ranges.logits, name, [query[:, part] @ key[:, part].T * width**-0.5])

    def hook(projection: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: multiply(projection, output)

    return [attention.get_submodule(name).register_forward_hook(hook(name)) for name in (to_query, to_key)]
