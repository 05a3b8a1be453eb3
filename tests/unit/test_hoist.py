"""Splitting graphs into prologue and body: what moves, what crosses, and that no number changes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from latentrt.engine.passes.axes import describe_tensors
from latentrt.engine.passes.hoist import Hoisted, hoist
from latentrt.engine.passes.lengths import fold_lengths
from latentrt.runtime.errors import BuildError

LOOP = ("sample", "timestep")
SIZES = {"rows": 2, "tokens": 5, "h": 3, "w": 4, "words": 6}
HEADER = '<ir_version: 10, opset_import: ["" : 23]>'


@dataclass
class Case:
    """A graph and what hoisting must make of it. Weights are random constants named in upper case with their shapes."""

    graph: str
    moved: str
    """Operators of the prologue, sorted."""
    interface: dict[str, str]
    """Tensors that cross, with their axes."""
    body_inputs: tuple[str, ...] = LOOP
    """Inputs of the original that the body has."""


INPUTS = "float[rows,4,h,w] sample, float[rows] timestep, float[rows,tokens,16] prompt"

CASES = {
    "a projection, with its weight": Case(
        f"""unet ({INPUTS}) => (float[rows,h,w,4] out) <float[16,32] KEY, float[32,4] BACK>
        {{ key = MatMul(prompt, KEY)
           mean = ReduceMean<axes=[1]>(key)
           back = MatMul(key, BACK)
           one = Constant<value_ints=[1]>()
           row = ReduceSum<keepdims=1>(back, one)
           seen = Unsqueeze(row, one)
           t = Constant<value_ints=[-1,1,1,1]>()
           time = Reshape(timestep, t)
           last = Transpose<perm=[0,2,3,1]>(sample)
           sum = Add(last, time)
           out = Add(sum, seen) }}""",
        "Constant MatMul MatMul ReduceSum Unsqueeze",
        {"seen": "rows 1 1 4"},
    ),
    "lengths of an input outside the loop are read from the sample": Case(
        f"""unet ({INPUTS}) => (float[rows,n] out) <float[16,32] KEY>
        {{ key = MatMul(prompt, KEY)
           rows = Shape<start=0,end=1>(prompt)
           rest = Constant<value_ints=[-1]>()
           shape = Concat<axis=0>(rows, rest)
           flat = Reshape(sample, shape)
           high = ReduceMax(key)
           out = Add(flat, high) }}""",
        "MatMul ReduceMax",
        {"high": "1 1 1"},
    ),
    "lengths of the sample are read from the prompt": Case(
        f"""unet ({INPUTS}) => (float[rows,tokens,8] out) <float[16,32] KEY>
        {{ key = MatMul(prompt, KEY)
           shape = Shape(sample)
           zero = Constant<value_ints=[0]>()
           rows = Gather(shape, zero)
           rest = Constant<value_ints=[-1,4,8]>()
           four = Concat<axis=0>(rows, rest)
           heads = Reshape(key, four)
           turned = Transpose<perm=[0,2,1,3]>(heads)
           i = Constant<value_int=0>()
           axis = Constant<value_ints=[1,2]>()
           column = Unsqueeze(timestep, axis)
           head = Gather<axis=1>(turned, i)
           out = Add(head, column) }}""",
        "Concat Constant Constant Gather Gather MatMul Reshape Shape Transpose",
        {"head": "rows tokens 8"},
    ),
    "a length that only the body knows keeps what needs it there": Case(
        f"""unet ({INPUTS}) => (float[rows,tokens,h] out) <float[16,1] KEY>
        {{ key = MatMul(prompt, KEY)
           shape = Shape(sample)
           place = Constant<value_ints=[0]>()
           height = Shape<start=2,end=3>(sample)
           ones = Constant<value_ints=[1,1]>()
           wide = Concat<axis=0>(ones, height)
           spread = Expand(key, wide)
           two = Constant<value_ints=[1,2]>()
           t = Unsqueeze(timestep, two)
           out = Add(spread, t) }}""",
        "MatMul",
        {"key": "rows tokens 1"},
    ),
    "an input whose length nothing else has stays": Case(
        """unet (float[rows,4,h,w] sample, float[rows] timestep, float[rows,tokens,16] prompt, float[words] other)
             => (float[rows,4,h,w] out) <float[16,1] KEY>
        { key = MatMul(prompt, KEY)
          all = ReduceMax<keepdims=0>(key)
          words = Shape(other)
          count = Cast<to=1>(words)
          t = Add(sample, all)
          out = Mul(t, count) }""",
        "MatMul ReduceMax",
        {"all": ""},
        (*LOOP, "other"),
    ),
    "integers do not cross": Case(
        f"""unet ({INPUTS}) => (float[rows,4,h,w] out)
        {{ best = ArgMax<axis=2,keepdims=0>(prompt)
           number = Cast<to=1>(best)
           top = ReduceMax<keepdims=0>(number)
           low = ReduceMin<keepdims=0>(best)
           lowest = Cast<to=1>(low)
           sum = Add(sample, top)
           small = Cast<to=7>(timestep)
           third = Constant<value_ints=[0]>()
           first = Gather(small, third)
           both = Add(first, low)
           real = Cast<to=1>(both)
           out = Add(sum, real) }}""",
        "ArgMax Cast ReduceMax",
        {"top": ""},
        (*LOOP, "prompt"),
    ),
    "axes that no dim explains do not cross": Case(
        f"""unet ({INPUTS}) => (float[rows,4,h,w] out) <float[16,16] KEY>
        {{ key = MatMul(prompt, KEY)
           flat = Constant<value_ints=[-1]>()
           line = Reshape(key, flat)
           gate = Sigmoid(line)
           shape = Shape(key)
           back = Reshape(gate, shape)
           one = Constant<value_ints=[0]>()
           first = Gather(sample, one)
           high = ReduceMax<keepdims=0>(first)
           scaled = Mul(gate, high)
           most = ReduceMax<keepdims=0>(scaled)
           out = Add(sample, most) }}""",
        "MatMul",
        {"key": "rows tokens 16"},
    ),
    "no weight is on both sides": Case(
        f"""unet ({INPUTS}) => (float[rows,4,h,k] out) <float[16,16] KEY, float[16,32] SHARED>
        {{ key = MatMul(prompt, KEY)
           query = MatMul(key, SHARED)
           top = ReduceMax<keepdims=0>(query)
           part = ReduceMean<keepdims=1>(sample)
           other = Mul(part, SHARED)
           out = Add(other, top) }}""",
        "MatMul",
        {"key": "rows tokens 16"},
    ),
}

NOTHING = {
    "nothing outside the loop": "unet (float[rows,4,h,w] sample, float[rows] timestep) => (float[rows,4,h,w] out) "
    "{ out = Relu(sample) }",
    "an input that is only passed on": f"unet ({INPUTS}) => (float out) "
    "{ a = ReduceSum<keepdims=0>(prompt, ) \n b = ReduceSum<keepdims=0>(sample) \n c = Add(sample, prompt) "
    "\n d = ReduceMax<keepdims=0>(c) \n out = Add(b, d) }",
}


def parse(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + text)
    draw = np.random.default_rng(0).standard_normal
    for value in [value for value in proto.graph.value_info if value.name.isupper()]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(draw(shape).astype("f4"), value.name))
        proto.graph.value_info.remove(value)
    return ir.from_proto(proto)


def run(model: ir.Model, feeds: dict[str, Any]) -> dict[str, Any]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    given = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, given), strict=True))


def inputs_of(model: ir.Model, sizes: dict[str, int]) -> dict[str, Any]:
    draw = np.random.default_rng(1).standard_normal
    shapes = {str(v.name): [n if isinstance(n, int) else sizes[str(n)] for n in v.shape or ()] for v in model.graph.inputs}
    return {name: np.asarray(draw(shape), "f4") for name, shape in shapes.items()}


def assert_same_numbers(model: ir.Model, split: Hoisted, sizes: dict[str, int]) -> None:
    feeds = inputs_of(model, sizes)
    crossing = run(split.prologue, feeds)
    assert tuple(crossing) == split.interface
    for name, values in run(model, feeds).items():
        np.testing.assert_array_equal(run(split.body, feeds | crossing)[name], values)


def operators(model: ir.Model) -> list[str]:
    return sorted(node.op_type for node in model.graph)


def names(values: Any) -> list[str]:
    return [value.name for value in values]


@pytest.mark.parametrize("name", CASES)
def test_hoisting(name: str) -> None:
    case = CASES[name]
    model = parse(case.graph)
    before = ir.to_proto(model).SerializeToString()
    split = hoist(model, LOOP)
    assert split is not None
    assert ir.to_proto(model).SerializeToString() == before, "the original is changed"
    assert operators(split.prologue) == case.moved.split()
    crossing = {str(value.name): " ".join(map(str, value.shape or ())) for value in split.prologue.graph.outputs}
    assert crossing == case.interface
    kept = [name for name in names(model.graph.inputs) if name in names(split.body.graph.inputs)]
    assert kept == [name for name in names(model.graph.inputs) if name in case.body_inputs] or set(kept) <= {*LOOP}
    assert names(split.body.graph.inputs) == [*kept, *case.interface]
    assert names(split.body.graph.outputs) == names(model.graph.outputs)
    assert hoist(split.body, kept) is None or set(kept) < set(names(split.body.graph.inputs))
    assert_same_numbers(model, split, SIZES)


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_hoist(name: str) -> None:
    assert hoist(parse(NOTHING[name]), LOOP) is None
