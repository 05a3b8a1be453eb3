"""Splitting graphs into prologue and body: what moves, what crosses, and that no number changes."""

import warnings
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
from latentrt.engine.passes.flat_attention import flatten_attention
from latentrt.engine.passes.group_norm import use_instance_norm
from latentrt.engine.passes.hoist import Hoisted, hoist
from latentrt.engine.passes.lengths import fold_lengths
from latentrt.runtime.errors import BuildError

LOOP = ("sample", "timestep")
CROSSING = {
    "batch 4 sequence 8": 3,
    "batch 4 8 sequence": 3,
    "batch 4 sequence 16": 1,
    "batch 4 16 sequence": 1,
}
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
        f"""unet ({INPUTS}) => (float[rows,4,h,w] out) <float[16,32] KEY>
        {{ key = MatMul(prompt, KEY)
           high = ReduceMax<keepdims=0>(key)
           sum = Add(sample, high)
           low = ReduceMin<keepdims=0>(timestep)
           out = Add(sum, low) }}""",
        "MatMul ReduceMax",
        {"high": ""},
    ),
    "lengths of an input outside the loop are read from the sample": Case(
        f"""unet ({INPUTS}) => (float[rows,n] out) <float[16,32] KEY>
        {{ key = MatMul(prompt, KEY)
           high = ReduceMax<keepdims=0>(key)
           rows = Shape<start=0,end=1>(prompt)
           rest = Constant<value_ints=[-1]>()
           shape = Concat<axis=0>(rows, rest)
           flat = Reshape(sample, shape)
           out = Add(flat, high) }}""",
        "MatMul ReduceMax",
        {"high": ""},
        ("sample",),
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
        ("timestep",),
    ),
    "a length that only the body knows keeps what needs it there": Case(
        f"""unet ({INPUTS}) => (float[rows,tokens,h] out) <float[16,32] KEY, float[32,1] LAST>
        {{ key = MatMul(prompt, KEY)
           last = MatMul(key, LAST)
           height = Shape<start=2,end=3>(sample)
           ones = Constant<value_ints=[1,1]>()
           wide = Concat<axis=0>(ones, height)
           spread = Expand(last, wide)
           two = Constant<value_ints=[1,2]>()
           t = Unsqueeze(timestep, two)
           out = Add(spread, t) }}""",
        "MatMul MatMul",
        {"last": "rows tokens 1"},
    ),
    "an input whose length nothing else has stays": Case(
        """unet (float[rows,4,h,w] sample, float[rows] timestep, float[rows,tokens,16] prompt, float[words] other)
             => (float[rows,4,h,w] out) <float[16,32] KEY>
        { key = MatMul(prompt, KEY)
          high = ReduceMax<keepdims=0>(key)
          words = Shape(other)
          count = Cast<to=1>(words)
          sum = Add(sample, high)
          out = Mul(sum, count) }""",
        "MatMul ReduceMax",
        {"high": ""},
        ("sample", "other"),
    ),
    "integers do not cross": Case(
        f"""unet ({INPUTS}) => (float[rows,4,h,w] out) <float[16,32] KEY>
        {{ best = ArgMax<axis=2,keepdims=0>(prompt)
           first = ReduceMin<keepdims=0>(best)
           number = Cast<to=1>(first)
           axis = Constant<value_ints=[0]>()
           steps = Cast<to=7>(timestep)
           both = Add(steps, first)
           most = ReduceMax<keepdims=0>(both)
           real = Cast<to=1>(most)
           key = MatMul(prompt, KEY)
           high = ReduceMax<keepdims=0>(key)
           sum = Add(sample, high)
           out = Add(sum, real) }}""",
        "MatMul ReduceMax",
        {"high": ""},
        (*LOOP, "prompt"),
    ),
    "axes that no dim explains do not cross": Case(
        f"""unet ({INPUTS}) => (float[rows,4,h,w] out) <float[16,32] KEY>
        {{ key = MatMul(prompt, KEY)
           all = Constant<value_ints=[-1]>()
           line = Reshape(key, all)
           gate = Sigmoid(line)
           first = ReduceMax<keepdims=0>(sample)
           scaled = Mul(gate, first)
           most = ReduceMax<keepdims=0>(scaled)
           out = Add(sample, most) }}""",
        "MatMul",
        {"key": "rows tokens 32"},
        ("sample",),
    ),
    "no weight is on both sides": Case(
        f"""unet ({INPUTS}) => (float[rows,4,h,w] out) <float[16,16] KEY, float[16,32] SHARED>
        {{ key = MatMul(prompt, KEY)
           query = MatMul(key, SHARED)
           top = ReduceMax<keepdims=0>(query)
           mean = ReduceMean<keepdims=0>(sample)
           other = Mul(mean, SHARED)
           low = ReduceMin<keepdims=0>(other)
           sum = Add(sample, low)
           out = Add(sum, top) }}""",
        "MatMul",
        {"key": "rows tokens 16"},
        ("sample",),
    ),
    "a number of a small constant is on both sides": Case(
        f"""unet ({INPUTS}) => (float[rows,4,h,w] out) <float[16,32] KEY>
        {{ half = Constant<value_float=0.5>()
           key = MatMul(prompt, KEY)
           scaled = Mul(key, half)
           high = ReduceMax<keepdims=0>(scaled)
           sum = Add(sample, high)
           out = Mul(sum, half) }}""",
        "Constant MatMul Mul ReduceMax",
        {"high": ""},
        ("sample",),
    ),
}

NOTHING = {
    "no input outside the loop": "unet (float[rows,4,h,w] sample) => (float[rows,4,h,w] out) { out = Relu(sample) }",
    "an input that is only added": "unet (float[rows,4] sample, float[rows,4] prompt) => (float[rows,4] out) "
    "{ out = Add(sample, prompt) }",
    "an output that does not change": "unet (float[rows,4] sample, float[rows,4] prompt) => (float[rows,4] out) "
    "{ out = Relu(prompt) }",
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
    shapes = {str(value.name): value.shape or () for value in model.graph.inputs}
    return {
        name: np.asarray(draw([n if isinstance(n, int) else sizes[str(n)] for n in shape]), "f4")
        for name, shape in shapes.items()
    }


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
    assert names(split.body.graph.inputs) == [*case.body_inputs, *case.interface]
    assert names(split.body.graph.outputs) == names(model.graph.outputs)
    assert split.nodes == len(model.graph) - len(split.body.graph)
    assert_same_numbers(model, split, SIZES)
    loop = [name for name in case.body_inputs if name in LOOP]
    assert hoist(split.body, loop) is None, "a second run finds more"


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_hoist(name: str) -> None:
    assert hoist(parse(NOTHING[name]), LOOP[:1]) is None


def test_a_loop_input_that_is_not_there() -> None:
    with pytest.raises(BuildError, match="unet: no input step for the loop, the inputs are sample"):
        hoist(parse(NOTHING["no input outside the loop"]), ("sample", "step"))


FOLDED = {
    "heads and channels": (
        f"""unet ({INPUTS}) => (float[rows,4,tokens,heads] out) <float[16,32] KEY>
        {{ key = MatMul(prompt, KEY)
           shape = Shape(key)
           two = Constant<value_int=2>()
           width = Gather(shape, two)
           heads = Constant<value_int=4>()
           each = Div(width, heads)
           zero = Constant<value_ints=[0]>()
           one = Unsqueeze(each, zero)
           rows = Constant<value_ints=[0,0,4]>()
           four = Concat<axis=0>(rows, one)
           split = Reshape(key, four)
           out = Transpose<perm=[0,2,1,3]>(split) }}""",
        "MatMul Reshape Transpose",
    ),
    "a whole shape, once the one before it is known": (
        """unet (float[4,6] sample, float[rows] prompt) => (float[24] out)
        { two = Constant<value_ints=[2,2]>()
          whole = Shape(sample)
          half = Div(whole, two)
          same = Mul(half, two)
          view = Reshape(sample, same)
          positive = Relu(view)
          width = Shape<start=1>(positive)
          four = Constant<value_ints=[4]>()
          all = Mul(width, four)
          first = Constant<value_ints=[0]>()
          length = Gather(all, first)
          out = Reshape(positive, length) }""",
        "Relu Reshape Reshape",
    ),
    "lengths that are not fixed": (
        f"unet ({INPUTS}) => (int64 out) {{ s = Shape(prompt) \n i = Constant<value_int=1>() \n out = Gather(s, i) }}",
        "Constant Gather Shape",
    ),
    "weights": (
        f"""unet ({INPUTS}) => (float[rows,tokens,16] out) <float[16,16] A, float[16,16] B>
        {{ both = Mul(A, B)
           out = MatMul(prompt, both) }}""",
        "MatMul Mul",
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folding_lengths(name: str) -> None:
    graph, left = FOLDED[name]
    model, folded = parse(graph), parse(graph)
    modified = operators(model) != left.split()
    assert fold_lengths(folded).modified == modified
    assert operators(folded) == left.split()
    assert not fold_lengths(folded).modified, "a second run changes something"
    for side in ("inputs", "outputs"):
        assert names(getattr(folded.graph, side)) == names(getattr(model.graph, side))
    feeds = inputs_of(model, SIZES)
    np.testing.assert_array_equal(run(folded, feeds)["out"], run(model, feeds)["out"])


TWO_HEADS = """
        { view = Constant<value_ints=[0,-1,2,8]>()
          flat = Constant<value_ints=[0,-1,16]>()
          q4 = Reshape(prompt, view)
          q = Transpose<perm=[0,2,1,3]>(q4)
          key = MatMul(prompt, KEY)
          k4 = Reshape(key, view)
          k = Transpose<perm=[0,2,1,3]>(k4)
          a = Attention(q, k, k)
          b = Transpose<perm=[0,2,1,3]>(a)
          c = Reshape(b, flat)
          out = Relu(c) }"""
FLATTENED = {
    "two heads": (TWO_HEADS, "Attention MatMul Relu"),
    "another order of axes": (
        TWO_HEADS.replace("b = Transpose<perm=[0,2,1,3]>", "b = Transpose<perm=[0,2,3,1]>"),
        None,
    ),
    "a result that is used twice": (TWO_HEADS.replace("Relu(c) }", "Relu(c) \n other = Relu(a) }"), None),
    "heads that are no part of the last axis": (TWO_HEADS.replace("[0,-1,2,8]", "[0,2,-1,8]"), None),
}


@pytest.mark.parametrize("name", FLATTENED)
def test_flattening_attention(name: str) -> None:
    body, left = FLATTENED[name]
    text = f"unet ({INPUTS}) => (float[rows,n,m] out) <float[16,16] KEY> {body}"
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(parse(text)))
    (result,) = (value for value in proto.graph.value_info if value.name == "c")
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["rows", None, None])
    result.type.CopyFrom(kind)  # which ONNX leaves open, and torch's exporter writes down
    model, flat = ir.from_proto(proto), ir.from_proto(proto)
    assert flatten_attention(flat).modified == (left is not None)
    assert operators(flat) == (operators(model) if left is None else left.split())
    assert not flatten_attention(flat).modified, "a second run changes something"
    feeds = inputs_of(model, SIZES)
    np.testing.assert_array_equal(run(flat, feeds)["out"], run(model, feeds)["out"])


GROUP_NORMS = {
    "of a convolution's output": (
        """
        { y = GroupNormalization<num_groups=2, epsilon=0.001>(sample, SCALE, BIAS)
          out = Relu(y) }""",
        "Add InstanceNormalization Mul Relu Reshape Reshape Shape",
    ),
    "as the graph's output": (
        "{ out = GroupNormalization<num_groups=1>(sample, SCALE, BIAS) }",
        "Add InstanceNormalization Mul Reshape Reshape Shape",
    ),
    "with a scale that is computed": (
        """
        { scale = Relu(SCALE)
          out = GroupNormalization<num_groups=2>(sample, scale, BIAS) }""",
        None,
    ),
}


@pytest.mark.parametrize("name", GROUP_NORMS)
def test_group_norms_as_instance_norms(name: str) -> None:
    body, left = GROUP_NORMS[name]
    weights = "<float[4] SCALE = {1.0,2.0,-3.0,0.5}, float[4] BIAS = {0.0,1.0,2.0,-1.0}>"
    text = f"unet ({INPUTS}) => (float[rows,4,h,w] out) {weights} {body}"
    model, changed = parse(text), parse(text)
    assert use_instance_norm(changed).modified == (left is not None)
    assert operators(changed) == (operators(model) if left is None else left.split())
    assert not use_instance_norm(changed).modified, "a second run changes something"
    assert names(changed.graph.outputs) == names(model.graph.outputs)
    feeds = inputs_of(model, SIZES)
    np.testing.assert_allclose(run(changed, feeds)["out"], run(model, feeds)["out"], atol=1e-5)


def test_axes_are_found_without_symbols() -> None:
    model = parse(
        f"""unet ({INPUTS}) => (float[a,b] out)
        {{ merged = Constant<value_ints=[0,0,-1]>()
           view = Reshape(sample, merged)
           up = Concat<axis=1>(prompt, prompt)
           line = Constant<value_ints=[-1]>()
           pairs = Reshape(timestep, line)
           twice = Concat<axis=0>(pairs, pairs)
           first = Constant<value_floats=[1.0,2.0,3.0]>()
           more = Concat<axis=0>(twice, first)
           out = Flatten(prompt) }}"""
    )
    axes = {name: [str(axis) for axis in found.axes] for name, found in describe_tensors(model.graph).items()}
    assert axes["up"] == ["rows", "2*tokens", "16"]
    assert axes["more"] == ["2*rows+3"]
    assert axes["view"] == ["rows", "4", "None"]  # h times w
    assert axes["out"] == ["rows", "16*tokens"]


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net of diffusers as other tools export it: TorchScript, opset 17, a scalar time step, other axis names."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    sizes = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4}
    unet = UNet2DConditionModel(
        sample_size=16, cross_attention_dim=48, down_block_types=blocks[0], up_block_types=blocks[1], **sizes
    )
    file = tmp_path_factory.mktemp("third_party") / "unet.onnx"
    axes = {"sample": {0: "batch", 2: "height", 3: "width"}, "encoder_hidden_states": {0: "batch", 1: "sequence"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            unet.eval(),
            (torch.randn(2, 4, 16, 16), torch.tensor(5.0), torch.randn(2, 77, 48)),
            file,
            dynamo=False,
            opset_version=17,
            input_names=[*LOOP, "encoder_hidden_states"],
            output_names=["out_sample"],
            dynamic_axes=axes,
        )
    return file


def test_a_third_party_export(third_party: Path) -> None:
    model = ir.load(third_party)
    folded = ir.load(third_party)
    assert fold_lengths(folded).modified
    split = hoist(folded, LOOP)
    assert split is not None
    assert names(split.body.graph.inputs)[:2] == [*LOOP]
    # Four blocks with cross-attention, keys ready for the product with queries.
    crossing = Counter(" ".join(map(str, value.shape or ())) for value in split.prologue.graph.outputs)
    assert crossing == CROSSING
    sizes = {"batch": 3, "height": 8, "width": 24, "sequence": 154}
    assert_same_numbers(model, split, sizes)
