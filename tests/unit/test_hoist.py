"""Splitting graphs into prologue and body: what moves, what crosses, and that no number changes."""

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import INPUTS, SIZES, inputs_of, names, operators, parse, run

from latentrt.engine.passes.axes import describe_tensors
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


def assert_same_numbers(model: ir.Model, split: Hoisted, sizes: dict[str, int]) -> None:
    feeds = inputs_of(model, sizes)
    crossing = run(split.prologue, feeds)
    assert tuple(crossing) == split.interface
    for name, values in run(model, feeds).items():
        np.testing.assert_array_equal(run(split.body, feeds | crossing)[name], values)


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
