"""Slots for LoRAs: a bypass beside each layer that a LoRA can change, whose matrices are inputs of the graph."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from latentrt.engine.passes.rewriting import add_constant, only_reader
from latentrt.runtime.bundle.lora_slots import DOWN, LAYER_KEY, STRENGTHS, UP, LoraLayers, LoraSlots

ATTENTION = (".attentions.", "encoder.layers.")
"""Parts of the names of the U-Net's and the text encoders' layers in transformer blocks."""

LAYOUTS: dict[str, Sequence[int]] = {"flat": (0, -1), "kernel": (0, -1, 1, 1)}
"""Shapes of the strengths (rows, 1, R) for products of matrices and for convolutions; 0 keeps a length."""


def add_lora_slots(model: ir.Model, slots: LoraSlots, rows: str) -> tuple[ir.Value, ...]:
    """Give every layer that a LoRA can change its bypass. Returns the new inputs, the strengths last.

    1. The export has recorded the layer's name on its node, a `MatMul`, `Gemm` or `Conv` with constant weights.
    2. The sum stands behind the bias, so that product and bias can still be fused.
    3. The bypass has the dtype of the layer's weights; the strengths are float32 and are cast where that differs.

    `rows`: the dim of the batch's rows. The pass comes before all others, which then treat a bypass as a part of the
    network.
    """
    found = list(layers(model.graph, slots.layers))
    if not found:
        return ()
    strengths = ir.Value(name=STRENGTHS, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([rows, 1, slots.rank]))
    bypasses = Bypasses(model.graph, slots.rank, strengths)
    inputs = [value for name, node, last in found for value in bypasses.add(name, node, last)]
    model.graph.inputs.extend([*inputs, strengths])
    return (*inputs, strengths)


def layers(graph: ir.Graph, which: LoraLayers) -> Iterator[tuple[str, ir.Node, ir.Node]]:
    """Name in the checkpoint, product and last node, which may add the bias, of each layer that gets a bypass."""
    for node in graph:
        name = node.metadata_props.get(LAYER_KEY)
        weights = node.inputs[1] if len(node.inputs) > 1 else None
        if name is None or weights is None or weights.const_value is None:
            continue
        # Leading dots: the first blocks' names begin with the part that others have inside.
        if which == "all" or any(part in f".{name}" for part in ATTENTION):
            yield name, node, _bias(node) or node


def _bias(node: ir.Node) -> ir.Node | None:
    """The node that adds a constant to a product, if nothing else reads the product."""
    add = only_reader(node.outputs[0], "Add") if node.op_type == "MatMul" else None
    if add is None:
        return None
    others = [value for value in add.inputs if value is not None and value is not node.outputs[0]]
    return add if others and others[0].is_initializer() else None


class Bypasses:
    """Adds bypasses to one graph; the strengths are brought into each layout and dtype once."""

    def __init__(self, graph: ir.Graph, rank: int, strengths: ir.Value):
        self._graph, self._rank, self._strengths = graph, rank, strengths
        self._made: dict[tuple[str, ir.DataType], ir.Value] = {}

    def add(self, name: str, node: ir.Node, last: ir.Node) -> tuple[ir.Value, ir.Value]:
        """Add one layer's bypass behind `last`; returns its two new inputs."""
        x, weights = node.inputs[0], node.inputs[1]
        assert x is not None
        assert weights is not None
        assert weights.const_value is not None
        dtype = weights.const_value.dtype
        a, b = (
            ir.Value(name=f"{name}{part}", type=ir.TensorType(dtype), shape=ir.Shape(lengths))
            for part, lengths in zip((DOWN, UP), self._shapes(node, weights.const_value.shape.numpy()), strict=True)
        )
        kernel = node.op_type == "Conv"
        is_flat = node.op_type == "Gemm" or (x.shape is not None and len(x.shape) == 2)
        layout = "kernel" if kernel else "flat" if is_flat else "rows"
        operator = "Conv" if kernel else "MatMul"
        down = ir.Node("", operator, [x, a], node.attributes.values() if kernel else ())
        scaled = ir.node("Mul", [down.outputs[0], self._scale(layout, dtype)])
        up = ir.node(operator, [scaled.outputs[0], b])
        before, readers = last.outputs[0], tuple(last.outputs[0].uses())
        total = ir.node("Add", [before, up.outputs[0]])
        for made, part in ((down, "down"), (scaled, "scaled"), (up, "up"), (total, "sum")):
            made.name = made.outputs[0].name = f"{name}.lora_{part}"
        total.outputs[0].type, total.outputs[0].shape = before.type, before.shape
        for reader, index in readers:
            reader.replace_input_with(index, total.outputs[0])
        if before.is_graph_output():
            total.outputs[0].name, before.name = before.name, f"{before.name}_before"
            self._graph.outputs[self._graph.outputs.index(before)] = total.outputs[0]
        self._graph.insert_after(last, (down, scaled, up, total))
        return a, b

    def _shapes(self, node: ir.Node, shape: Sequence[int]) -> tuple[list[int], list[int]]:
        """Shapes of a layer's A and B; `shape` is that of its weights."""
        if node.op_type == "Conv":
            out, inside, *window = shape
            return [self._rank, inside, *window], [out, self._rank, 1, 1]
        transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
        inside, out = shape[::-1] if transposed else shape
        return [inside, self._rank], [self._rank, out]

    def _scale(self, layout: str, dtype: ir.DataType) -> ir.Value:
        """The strengths in one layout and dtype, made at the beginning of the graph."""
        if (layout, dtype) not in self._made:
            nodes: list[ir.Node] = []
            if layout in LAYOUTS:
                nodes.append(ir.node("Reshape", [self._strengths, self._shape(layout)]))
            if dtype != ir.DataType.FLOAT:
                nodes.append(ir.node("Cast", [nodes[-1].outputs[0] if nodes else self._strengths], {"to": dtype}))
            for node in nodes:
                node.name = node.outputs[0].name = f"{STRENGTHS}_{layout}_{dtype.name.lower()}_{node.op_type.lower()}"
            if nodes:
                self._graph.insert_before(self._graph[0], nodes)
            self._made[layout, dtype] = nodes[-1].outputs[0] if nodes else self._strengths
        return self._made[layout, dtype]

    def _shape(self, layout: str) -> ir.Value:
        name = f"{STRENGTHS}_{layout}_shape"
        if name not in self._graph.initializers:
            add_constant(self._graph, name, np.array(LAYOUTS[layout], np.int64))
        return self._graph.initializers[name]
