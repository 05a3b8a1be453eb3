"""Loop-invariant code motion: what a network computes anew on every step although it could not change.

    split = hoist(model, ("sample", "timestep"))

Aho, Lam, Sethi, Ullman, Compilers (2nd edition), section 9.5; the loop here is the sampler's, outside the graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import onnx_ir as ir
from onnx_ir.convenience import create_value_mapping, extract

from latentrt.engine.passes.axes import WEIGHT_BYTES, Described, describe_tensors
from latentrt.engine.passes.shape_reads import LengthSource, replace_shape_reads
from latentrt.runtime.errors import BuildError

LENGTHS = ("Shape", "Size")
"""Operators that read no values."""

PORT_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Dtypes that may cross from prologue to body: integers and booleans are lengths, indices and conditions."""


class Depends(IntEnum):
    """What a tensor's values depend on; a node's outputs take the largest of its inputs'."""

    NOTHING = 0
    """Constants, and the lengths of tensors: made anew wherever they are needed."""
    PROMPT = 1
    LOOP = 2


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A network in two parts; what crosses from prologue to body has the same names on both sides."""

    prologue: ir.Model
    body: ir.Model
    nodes: int
    """Nodes that the loop no longer runs."""
    parameters: int
    """Elements of the weights that it no longer reads."""

    @property
    def interface(self) -> tuple[str, ...]:
        """The tensors that cross."""
        return tuple(str(value.name) for value in self.prologue.graph.outputs)


def hoist(model: ir.Model, loop_inputs: Sequence[str]) -> Hoisted | None:
    """Split a model into what depends on `loop_inputs` and what does not; None where nothing can be moved.

    1. A tensor depends on what its node's inputs depend on; the length of an axis depends on no values.
    2. The prologue takes all that depends on inputs outside the loop only. What the body reads of it is the interface.
    3. Lengths are no part of the interface: each side reads them from a tensor that it has with that axis. Where it
       has none, a prologue leaves the work to the body, and a body keeps the original input.
    4. A tensor that is not of floats, or whose axes cannot be written in the dims of the inputs, stays in the body with
       what follows from it.
    5. No weight is on both sides: what reads one that the body also reads stays in the body.

    The model is not changed; both parts share its weights.

    Raises:
        BuildError: a loop input is not there.
    """
    inputs = [str(value.name) for value in model.graph.inputs]
    if missing := [name for name in loop_inputs if name not in inputs]:
        raise BuildError(f"{model.graph.name}: no input {missing[0]} for the loop, the inputs are {', '.join(inputs)}")
    described = describe_tensors(model.graph)
    kept: set[str] = set()
    while True:
        depends = dependence(model.graph, loop_inputs, kept)
        cut = interface(model.graph, depends)
        if not cut:
            return None
        parts = Parts(model.graph, depends, cut, described)
        if not (misplaced := parts.misplaced()):
            return parts.finish(model)
        kept |= misplaced


def dependence(graph: ir.Graph, loop_inputs: Sequence[str], kept: set[str]) -> dict[str, Depends]:
    """What each tensor depends on, by name. Nodes in `kept`, named by their first outputs, belong to the loop."""
    found = {str(value.name): Depends.LOOP if value.name in loop_inputs else Depends.PROMPT for value in graph.inputs}
    for node in graph:
        if key(node) in kept:
            kind = Depends.LOOP
        elif node.op_type in LENGTHS:
            kind = Depends.NOTHING
        else:
            kind = max((found.get(name, Depends.NOTHING) for name in operands(node)), default=Depends.NOTHING)
        found |= {str(output.name): kind for output in node.outputs}
    return found


def key(node: ir.Node) -> str:
    """The name of a node's first output; nodes themselves may have none."""
    return str(node.outputs[0].name)


def operands(node: ir.Node) -> Iterator[str]:
    """Names of a node's inputs and of what its subgraphs take from outside."""
    yield from (str(value.name) for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from operands(inner)


def interface(graph: ir.Graph, depends: Mapping[str, Depends]) -> list[str]:
    """The prologue's tensors that the body or the caller reads, in the order of their nodes."""
    read = {str(value.name) for value in graph.outputs}
    for node in graph:
        if depends[key(node)] == Depends.LOOP and node.op_type not in LENGTHS:
            read.update(operands(node))
    made = (str(output.name) for node in graph for output in node.outputs)
    return [name for name in made if name in read and depends[name] == Depends.PROMPT]


class Parts:
    """Both sides of one cut, copied out of a graph, with their shape reads replaced."""

    def __init__(
        self, graph: ir.Graph, depends: Mapping[str, Depends], cut: list[str], described: Mapping[str, Described]
    ):
        self.graph, self.depends, self.cut, self.described = graph, depends, cut, described
        inputs = [str(value.name) for value in graph.inputs]
        prompt = [name for name in inputs if depends[name] == Depends.PROMPT]
        loop = [name for name in inputs if depends[name] == Depends.LOOP]
        self.prologue = self._side(prompt, Depends.LOOP, inputs, cut)
        self.body = self._side(loop + cut, Depends.PROMPT, inputs + cut, [str(value.name) for value in graph.outputs])

    def _side(self, own: list[str], foreign: Depends, bounds: list[str], outputs: list[str]) -> ir.Graph:
        """What leads from `bounds` to `outputs`; lengths of foreign tensors are read from the side's `own` ones."""
        copy = self.graph.clone()
        values = create_value_mapping(copy)
        source = LengthSource(copy, [values[name] for name in own], self.described)
        replace_shape_reads(copy, {name for name in self.depends if self.depends[name] == foreign} - set(own), source)
        side = extract(copy, bounds, outputs)
        for value in list(side.inputs):
            if not value.uses():
                side.inputs.remove(value)
        return side

    def misplaced(self) -> set[str]:
        """Nodes that must be the body's by rules 3, 4 and 5; none where the cut is right."""
        found = {
            key(node)
            for node in self.graph
            for output in node.outputs
            if output.name in self.cut
            if not self._can_cross(output)
        }
        # A shape read that could not be replaced draws in nodes of the other side.
        found |= {key(node) for node in self.prologue if node.op_type in LENGTHS and self._kind(node) == Depends.LOOP}
        found |= {key(node) for node in self.body if self.depends.get(key(node)) == Depends.PROMPT}
        shared = weights(self.prologue).keys() & weights(self.body).keys()
        return found | {key(node) for node in self.prologue if shared.intersection(operands(node))}

    def _kind(self, node: ir.Node) -> Depends:
        """What a node's operands depend on."""
        return max(self.depends.get(name, Depends.NOTHING) for name in operands(node))

    def _can_cross(self, value: ir.Value) -> bool:
        found = self.described.get(str(value.name))
        return (
            found is not None
            and found.dtype in PORT_DTYPES
            and None not in found.axes
            and value not in self.graph.outputs
        )

    def finish(self, model: ir.Model) -> Hoisted:
        """Declare the interface's axes on both sides."""
        for value in (*self.prologue.outputs, *self.body.inputs):
            if value.name in self.cut:
                found = self.described[str(value.name)]
                value.dtype = found.dtype
                value.shape = ir.Shape([str(axis) if axis.dim else axis.offset for axis in found.axes if axis])
        for side, name in ((self.prologue, "prologue"), (self.body, "body")):
            side.name = f"{self.graph.name}_{name}"
        own, left = weights(self.prologue), weights(self.body)
        return Hoisted(
            prologue=ir.Model(self.prologue, ir_version=model.ir_version),
            body=ir.Model(self.body, ir_version=model.ir_version),
            nodes=len(self.graph) - len(self.body),
            parameters=sum(size for name, size in own.items() if name not in left),
        )


def weights(graph: ir.Graph) -> dict[str, int]:
    """Elements of each weight of a graph, by name."""
    return {
        name: value.const_value.size
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= WEIGHT_BYTES
    }
