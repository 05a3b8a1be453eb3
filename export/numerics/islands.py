"""Float32 islands: the modules of an fp16 network whose values do not fit, with casts around them in the graph.

A module does not fit if a value that enters or leaves it, or one of its weights, is too large. The code that passes
such values on, its parent's forward, must then run in float32 as well, and so on upwards to a module whose inputs and
outputs all fit: there the island ends. Within an island every module that fits and holds matrices goes back to fp16, so
that only the layers that need float32 lose speed. A residual stream that overflows thus takes along its additions and
norms, but not the layers of its branches. An attention in float32 takes along its projections of queries, keys and
values: large logits need small rounding errors (fp16 rounds 16,000 to multiples of 8), and TensorRT-RTX 1.7 cannot
compile a float32 attention whose values are cast from fp16.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from latentrt.export.numerics.ranges import ATTENTIONS, Ranges, Run, floats

FP16_MAX = 65504.0
HEADROOM = 4.0
"""How many times larger a value may be in use than over the samples."""

LIMIT = FP16_MAX / HEADROOM
"""Largest absolute value over the samples that may be stored in fp16."""

LAYERS = (nn.Conv2d, nn.Linear)
"""Modules that cost time; so do attentions."""

MARK = "latentrt_float32"
"""Attribute that marks the modules that stay in float32."""

BORDER = "latentrt_border"
"""Attribute that holds the `Border` of a module that runs in another dtype than the code around it."""


@dataclass(frozen=True, slots=True)
class Islands:
    """The parts of a network that run in float32.

    `modules`: all such modules. `tops`: the outermost of them. `layers`: those that cost time, which are convolutions,
    linear layers and attentions. `borders`: modules that run in another dtype than the code that calls them. `edge`:
    whether the component's own code, which calls the outermost modules, runs in float32 too.
    """

    modules: frozenset[str]
    tops: tuple[str, ...]
    layers: tuple[str, ...]
    borders: tuple[str, ...]
    edge: bool


def find_islands(network: nn.Module, ranges: Ranges) -> Islands:
    """Find the fewest modules that must run in float32, by the rules above."""
    modules = {name: module for name, module in network.named_modules() if name in ranges.outputs}
    parents = {name: _parent(name, modules) for name in modules}
    unfit = {name for name, module in modules.items() if not _fits(module, name, ranges)}
    holding = {parents[name] for name in unfit} | {name for name in modules if ranges.logits.get(name, 0.0) > LIMIT}
    for name in [name for name in modules if name in unfit | holding and type(modules[name]) in ATTENTIONS]:
        unfit |= {f"{name}.{projection}" for projection in ATTENTIONS[type(modules[name])].projections}
    wide: set[str | None] = holding & {None}
    for name, module in modules.items():  # parents come before their children
        light = all(parameter.ndim < 2 for parameter in module.parameters())
        if name in unfit or name in holding or (light and parents[name] in wide):
            wide.add(name)
    chosen = [name for name in modules if name in wide]
    return Islands(
        modules=frozenset(chosen),
        tops=tuple(name for name in chosen if parents[name] is None or parents[name] not in wide),
        layers=tuple(name for name in chosen if isinstance(modules[name], (*LAYERS, *ATTENTIONS))),
        borders=tuple(name for name in modules if (name in wide) != (parents[name] in wide)),
        edge=None in wide,
    )


def _parent(name: str, called: Collection[str]) -> str | None:
    """Find the module whose code calls this one; None for the outermost, which the component's own module calls."""
    while name:
        name = name.rpartition(".")[0]
        if name in called:
            return name
    return None


def _fits(module: nn.Module, name: str, ranges: Ranges) -> bool:
    weights = (parameter.abs().amax().item() for parameter in module.parameters(recurse=False))
    return max(ranges.inputs[name], ranges.outputs[name]) <= LIMIT and all(weight <= FP16_MAX for weight in weights)


class Border:
    """Casts the inputs and outputs of a module that runs in another dtype than the code that calls it.

    In a rehearsal every tensor is float32, and a cast to fp16 only rounds.
    """

    def __init__(self, inside: torch.dtype, outside: torch.dtype):
        self.inside = inside
        self.outside = outside
        self.rehearsal = False

    def enter(self, _module: nn.Module, inputs: Any, named: Any) -> Any:
        """Cast the inputs; a forward pre-hook."""
        return self._cast((inputs, named), self.outside, self.inside)

    def leave(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """Cast the outputs; a forward hook."""
        return self._cast(output, self.inside, self.outside)

    def _cast(self, values: Any, source: torch.dtype, target: torch.dtype) -> Any:
        if self.rehearsal:
            return rounded(values) if target == torch.float16 else values
        return _convert(values, lambda tensor: tensor.to(target) if tensor.dtype == source else tensor)


def rounded(values: Any) -> Any:
    """Round the floating tensors of any nested structure to fp16, and give them in float32."""
    return _convert(values, lambda tensor: tensor.half().float() if tensor.is_floating_point() else tensor)


def _convert(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, values)


def place_islands(network: nn.Module, islands: Islands) -> None:
    """Mark the modules that stay in float32, and add casts at the islands' borders, outer and inner ones."""
    for name in islands.modules:
        setattr(network.get_submodule(name), MARK, True)
    for name in islands.borders:
        module = network.get_submodule(name)
        float32_inside = name in islands.modules
        border = Border(torch.float32, torch.float16) if float32_inside else Border(torch.float16, torch.float32)
        setattr(module, BORDER, border)
        module.register_forward_pre_hook(border.enter, with_kwargs=True)
        module.register_forward_hook(border.leave)


def frame(module: nn.Module, islands: Islands, dtypes: Sequence[torch.dtype]) -> None:
    """Give a component's module outputs of the ports' `dtypes`, whichever dtypes its network's islands give them."""
    if islands.edge:
        border = Border(torch.float32, torch.float16)
        module.register_forward_pre_hook(border.enter, with_kwargs=True)
    if islands.modules:
        module.register_forward_hook(lambda _module, _inputs, output: _as_ports(output, dtypes))


def _as_ports(output: Any, dtypes: Sequence[torch.dtype]) -> Any:
    if isinstance(output, Tensor):
        return output.to(dtypes[0])
    return tuple(tensor.to(dtype) for tensor, dtype in zip(output, dtypes, strict=True))


def to_fp16(module: nn.Module) -> None:
    """Cast weights in place, one by one: those of islands to float32, all others to fp16."""
    narrow = {id(tensor) for tensor in _fp16_tensors(module)}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half() if id(tensor) in narrow else tensor.data.float()


def _fp16_tensors(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        if not hasattr(part, MARK):
            tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
            yield from (tensor for tensor in tensors if tensor.is_floating_point())


def rehearse(network: nn.Module, run: Run, samples: Sequence[Any]) -> list[Tensor]:
    """Compute the outputs of the fp16 network with its islands in float32, for torch has no fast fp16 on CPUs.

    Weights, inputs, every module's output and the network's are rounded to fp16; sums are float32, as on tensor cores.
    The weights stay rounded afterwards.
    """
    for tensor in _fp16_tensors(network):
        if tensor.dtype == torch.float32:
            tensor.data = rounded(tensor.data)
    with torch.no_grad(), _rehearsing(network):
        return [tensor for sample in samples for tensor in floats(rounded(run(rounded(sample))))]


@contextmanager
def _rehearsing(network: nn.Module) -> Iterator[None]:
    """Round the output of every module outside the islands while the block runs."""
    borders: list[Border] = [getattr(module, BORDER) for module in network.modules() if hasattr(module, BORDER)]
    with ExitStack() as hooks:
        for module in network.modules():
            if not hasattr(module, MARK):
                hooks.enter_context(module.register_forward_hook(lambda _module, _inputs, output: rounded(output)))
        for border in borders:
            border.rehearsal = True
        try:
            yield
        finally:
            for border in borders:
                border.rehearsal = False
