"""Graph passes other than hoisting: what becomes of the operators, and that the numbers stay."""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import INPUTS, SIZES, inputs_of, names, operators, parse, run, shaped
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from latentrt.engine.passes import Pass
from latentrt.engine.passes.flat_attention import flatten_attention
from latentrt.engine.passes.gated_gelu import fuse_gated_gelu
from latentrt.engine.passes.group_norm import use_instance_norm
from latentrt.engine.passes.lengths import fold_lengths
from latentrt.engine.passes.rewriting import MICROSOFT

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
        "BatchNormalization InstanceNormalization Relu Reshape Reshape Shape",
    ),
    "as the graph's output": (
        "{ out = GroupNormalization<num_groups=1>(sample, SCALE, BIAS) }",
        "BatchNormalization InstanceNormalization Reshape Reshape Shape",
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


class BiasSplitGelu(OpRun):
    """`com.microsoft.BiasSplitGelu` as its schema says it."""

    op_domain = MICROSOFT

    def _run(self, x: Any, bias: Any) -> tuple[Any]:
        left, right = np.split((x + bias).astype("f8"), 2, axis=-1)
        erf = np.vectorize(math.erf)
        return ((left * right * 0.5 * (1 + erf(right / math.sqrt(2)))).astype(x.dtype),)


def run_fused(model: ir.Model, feeds: dict[str, Any]) -> Any:
    """ONNX Runtime has these operators on CUDA alone; elsewhere it knows their schemas, and no more."""
    proto = ir.to_proto(model)
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*BiasSplitGelu"):
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return ReferenceEvaluator(proto, new_ops=[BiasSplitGelu]).run(["out"], feeds)[0]


GATED = """{ wide = MatMul(prompt, WIDE)
             sum = Add(BIAS, wide)
             a, b = Split<axis=-1,num_outputs=2>(sum)
             g = Gelu(b)
             z = Mul(a, g)
             out = MatMul(z, BACK) }"""
GATED_GELUS = {
    "as transformers have it": (GATED, "BiasSplitGelu MatMul MatMul"),
    "as the graph's output": (GATED.replace("z = Mul(a, g)\n             out = MatMul(z, BACK)", "out = Mul(g, a)"),
                              "BiasSplitGelu MatMul"),
    "that is approximate": (GATED.replace("Gelu(b)", 'Gelu<approximate="tanh">(b)'), None),
    "of the first half": (GATED.replace("Gelu(b)", "Gelu(a)").replace("Mul(a, g)", "Mul(b, g)"), None),
    "of a sum that something else reads": (
        GATED.replace("z = Mul(a, g)", "y = Mul(a, g) \n s = ReduceMax<keepdims=0>(sum) \n z = Add(y, s)"),
        None,
    ),
    "of a width without a kernel": (GATED, None),
}  # fmt: skip


@pytest.mark.parametrize("name", GATED_GELUS)
def test_gated_gelus(name: str) -> None:
    body, left = GATED_GELUS[name]
    half = 1280 if "kernel" not in name else 1270
    weights = f"<float[16,{2 * half}] WIDE, float[{2 * half}] BIAS, float[{half},16] BACK>"
    text = f"unet ({INPUTS}) => (float[rows,tokens,n] out) {weights} {body}"
    check_fusion(fuse_gated_gelu, text, left, atol=1e-4, rtol=1e-4)


def check_fusion(fuse: Pass, text: str, left: str | None, **tolerances: float) -> None:
    """What a fusion leaves of a graph (None: everything), and that the numbers stay."""
    model, fused = shaped(text), shaped(text)
    assert fuse(fused).modified == (left is not None)
    assert operators(fused) == (operators(model) if left is None else left.split())
    assert not fuse(fused).modified, "a second run changes something"
    assert names(fused.graph.outputs) == names(model.graph.outputs)
    feeds = inputs_of(model, SIZES)
    if left is not None:
        np.testing.assert_allclose(run_fused(fused, feeds), run(model, feeds)["out"], **tolerances)
