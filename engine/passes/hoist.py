"""Loop-invariant code motion: takes out of a network whatever it would recompute on every step with the same result.

    split = hoist(model, ("sample", "timestep"))

Aho, Lam, Sethi, Ullman, Compilers (2nd edition), section 9.5. The loop is the sampler's and lies outside the graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import onnx_ir as ir
from onnx_ir.convenience import create_value_mapping, extract

from latentrt.engine.graph import WEIGHT_BYTES
from latentrt.engine.passes.axes import Described, describe_tensors
from latentrt.engine.passes.shape_reads import LengthSource, replace_shape_reads
from latentrt.runtime.errors import BuildError

LENGTHS = ("Shape", "Size")
"""Operators that read only the lengths of a tensor's axes, none of its values."""

PORT_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Dtypes that may cross from prologue to body; integers and booleans are lengths, indices or conditions."""


class Depends(IntEnum):
    """What a tensor's values depend on; the outputs of a node get the maximum over its inputs."""

    NOTHING = 0
    """Constants and lengths: both parts compute them for themselves."""
    PROMPT = 1
    LOOP = 2


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A network in two parts. A tensor that crosses from prologue to body has the same name in both."""

    prologue: ir.Model
    body: ir.Model
    nodes: int
    """How many nodes the loop no longer runs."""
    parameters: int
    """How many elements of weights it no longer reads."""

    @property
    def interface(self) -> tuple[str, ...]:
        """Names of the tensors that cross."""
        return tuple(str(value.name) for value in self.prologue.graph.outputs)


def hoist(model: ir.Model, loop_inputs: Sequence[str]) -> Hoisted | None:
    """Split a model into a body that depends on `loop_inputs` and a prologue that does not; None if nothing can move.

    1. A tensor depends on whatever its node's inputs depend on. The length of an axis depends on no values.
    2. The prologue takes everything that depends on the other inputs alone. Its tensors that the body reads are the
       interface.
    3. Lengths are not part of the interface: each side reads them from a tensor of its own that has the axis. Where
       there is none, the prologue leaves the work to the body, and the body keeps the original input.
    4. A tensor that is not of floats, or whose axes cannot be expressed in the dims of the inputs, stays in the body
       together with everything computed from it.
    5. No weight is in both parts: nodes that share a weight with the body stay in the body.

    The model is not changed; both parts share its weights.

    Raises:
        BuildError: the model lacks one of `loop_inputs`.
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
    """What each tensor depends on, by name. Nodes in `kept`, named by their first output, belong to the loop."""
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
    """The name of a node's first output, since nodes may be unnamed."""
    return str(node.outputs[0].name)


def operands(node: ir.Node) -> Iterator[str]:
    """Names of a node's inputs and of the tensors that its subgraphs read."""
    yield from (str(value.name) for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from operands(inner)


def interface(graph: ir.Graph, depends: Mapping[str, Depends]) -> list[str]:
    """Tensors of the prologue that the body reads or that are outputs of the graph, in the order of their nodes."""
    read = {str(value.name) for value in graph.outputs}
    for node in graph:
        if depends[key(node)] == Depends.LOOP and node.op_type not in LENGTHS:
            read.update(operands(node))
    made = (str(output.name) for node in graph for output in node.outputs)
    return [name for name in made if name in read and depends[name] == Depends.PROMPT]


class Parts:
    """Prologue and body of a graph for one interface, `cut`, with their shape reads replaced."""

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
        """The nodes between `bounds` and `outputs`; they read the lengths of foreign tensors from the `own` ones."""
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
        """Nodes that rules 3, 4 and 5 move to the body; none where the cut is right."""
        found = {
            key(node)
            for node in self.graph
            for output in node.outputs
            if output.name in self.cut
            if not self._can_cross(output)
        }
        # A shape read that could not be replaced pulls in nodes of the other side.
        found |= {key(node) for node in self.prologue if node.op_type in LENGTHS and self._kind(node) == Depends.LOOP}
        found |= {key(node) for node in self.body if self.depends.get(key(node)) == Depends.PROMPT}
        shared = weights(self.prologue).keys() & weights(self.body).keys()
        return found | {key(node) for node in self.prologue if shared.intersection(operands(node))}

    def _kind(self, node: ir.Node) -> Depends:
        """What a node's operands depend on."""
        return max(self.depends.get(name, Depends.NOTHING) for name in operands(node))

    def _can_cross(self, value: ir.Value) -> bool:
        """Whether a tensor may be part of the interface by rule 4."""
        found = self.described.get(str(value.name))
        return (
            found is not None
            and found.dtype in PORT_DTYPES
            and None not in found.axes
            and value not in self.graph.outputs
        )

    def finish(self, model: ir.Model) -> Hoisted:
        """Declare dtypes and axes of the interface, and make a model of each part."""
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
    """The number of elements of each weight of a graph, by name."""
    return {
        name: value.const_value.size
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= WEIGHT_BYTES
    }
