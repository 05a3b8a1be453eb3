"""How large a network's values grow: the largest absolute output of its modules over samples, in float32."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentrt.runtime.errors import NumericsError

Run = Callable[[Tensor], Tensor]


def logits_name(attention: str) -> str:
    """Under which name the ranges hold the largest softmax input of an attention."""
    return f"{attention}.logits"


def measure(
    network: nn.Module, modules: Iterable[str], attentions: Sequence[str], run: Run, samples: Iterable[Tensor]
) -> tuple[dict[str, float], list[Tensor]]:
    """Run every sample; returns each module's largest absolute output by name, and the network's outputs.

    The products of queries and keys count too, as `logits_name` of their attention: no module's output shows them.

    Raises:
        NumericsError: a value is not finite even in float32.
    """
    ranges: dict[str, float] = {}
    with torch.no_grad(), _watched(network, modules, attentions, ranges):
        outputs = [run(sample) for sample in samples]
    for name, largest in ranges.items():
        if not largest < float("inf"):
            raise NumericsError(
                f"{name}: gives values that are not finite in float32 already, so no precision can hold them. "
                "The weights are damaged; download the checkpoint again"
            )
    return ranges, outputs


@contextmanager
def _watched(
    network: nn.Module, modules: Iterable[str], attentions: Sequence[str], ranges: dict[str, float]
) -> Iterator[None]:
    """Hooks that keep `ranges` up to date while the block runs."""
    hooks = [network.get_submodule(name).register_forward_hook(_watch(name, ranges)) for name in modules]
    for name in attentions:
        hooks += _watch_logits(network.get_submodule(name), logits_name(name), ranges)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watch(name: str, ranges: dict[str, float]) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        _note(ranges, name, output)

    return hook


def _note(ranges: dict[str, float], name: str, values: Tensor) -> None:
    """Not `max`, which would drop a NaN."""
    largest = values.abs().amax().item()
    ranges[name] = largest if not largest <= ranges.get(name, 0.0) else ranges.get(name, 0.0)


def _watch_logits(attention: Any, name: str, ranges: dict[str, float]) -> list[Any]:
    """Hooks on the projections of queries and keys, whose product they form, image by image and head by head."""
    kept: dict[str, Tensor] = {}

    def query_hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept["query"] = output

    def key_hook(_module: nn.Module, _inputs: Any, key: Tensor) -> None:
        width = key.shape[-1] // attention.heads
        for one_query, one_key in zip(kept.pop("query"), key, strict=True):
            for head in range(attention.heads):
                part = slice(head * width, (head + 1) * width)
                _note(ranges, name, one_query[:, part] @ one_key[:, part].T * width**-0.5)

    return [attention.to_q.register_forward_hook(query_hook), attention.to_k.register_forward_hook(key_hook)]
