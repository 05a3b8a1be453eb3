"""Graph passes for ONNX Runtime's CUDA provider: what becomes of the operators, and that the numbers stay."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import INPUTS, SIZES, inputs_of, names, operators, parse, run, shaped
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from latentrt.engine.passes import Pass
from latentrt.engine.passes.arg_max import use_top_k
from latentrt.engine.passes.attention_masks import simplify_masks
from latentrt.engine.passes.gather_per_row import gather_per_row
from latentrt.engine.passes.group_norm import use_instance_norm
from latentrt.engine.passes.known_shapes import read_known_shapes
from latentrt.engine.passes.layer_norm_groups import use_layer_norm
from latentrt.engine.passes.lengths_at import lengths_at_trials
from latentrt.engine.passes.merged_products import merge_gemms
from latentrt.engine.passes.rewriting import MICROSOFT
from latentrt.engine.passes.skip_layer_norm import fuse_bias_add, fuse_skip_layer_norm

OTHER_SIZES = {"rows": 3, "tokens": 7, "h": 6, "w": 5}
"""Even where `SIZES` are odd."""


def check(change: Pass, text: str, left: str | None, tolerance: float = 0.0) -> ir.Model:
    """What a pass leaves of a graph (None: everything), and that the numbers stay at two sizes."""
    model, changed = shaped(text), shaped(text)
    assert change(changed).modified == (left is not None)
    assert operators(changed) == (operators(model) if left is None else left.split())
    assert not change(changed).modified, "a second run changes something"
    for side in ("inputs", "outputs"):
        assert names(getattr(changed.graph, side)) == names(getattr(model.graph, side))
    for sizes in (SIZES, OTHER_SIZES):
        feeds = inputs_of(model, sizes)
        wanted, found = run(model, feeds), run(changed, feeds)
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=tolerance, strict=True)
    return changed


HALF = """
    s = Shape<start=2, end=3>(sample)
    height = Squeeze(s)
    t = Shape<start=3, end=4>(sample)
    width = Squeeze(t)
    one = Constant<value_int=1>()
    two = Constant<value_int=2>()
    h1 = Sub(height, one)
    h2 = Div(h1, two)
    half_height = Add(h2, one)
    w1 = Sub(width, one)
    w2 = Div(w1, two)
    half_width = Add(w2, one)
    rows = Shape<start=0, end=1>(prompt)
    minus = Constant<value_ints=[-1]>()
    height1 = Reshape(half_height, minus)
    width1 = Reshape(half_width, minus)
    channels = Constant<value_ints=[8]>()"""
"""Height and width after a convolution that halves them, as torch's exporter computes them."""
HALVED = "small = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(sample, CONV)"

SHAPES = {
    "one length that is not known": (
        f"""(float[rows,n,8] out) {{ {HALF} {HALVED}
           last = Transpose<perm=[0,2,3,1]>(small)
           both = Mul(height1, width1)
           view = Concat<axis=0>(rows, both, channels)
           out = Reshape<allowzero=1>(last, view) }}""",
        "Conv Reshape Transpose",
    ),
    "an image from pixels": (
        f"""(float[rows,8,a,b] out) {{ {HALF} {HALVED}
           last = Transpose<perm=[0,2,3,1]>(small)
           flat = Constant<value_ints=[0,-1,8]>()
           pixels = Reshape(last, flat)
           view = Concat<axis=0>(rows, height1, width1, channels)
           image = Reshape(pixels, view)
           out = Transpose<perm=[0,3,1,2]>(image) }}""",
        "Constant Conv Reshape Reshape Shape Transpose Transpose",
    ),
    "an image with channels last, which no tensor is": (
        f"""(float[rows,a,b,8] out) {{ {HALF} {HALVED}
           zeros = Mul(small, ZERO)
           first = Reshape(zeros, minus)
           view = Concat<axis=0>(rows, height1, width1, channels)
           out = Reshape(first, view) }}""",
        None,
    ),
    "an image of another": (
        f"""(float[rows,8,h,w] out) {{ {HALF} {HALVED}
           full = Concat<axis=0>(s, t)
           from = Shape<start=0, end=2>(small)
           sizes = Concat<axis=0>(from, full)
           out = Resize<mode="nearest", nearest_mode="floor",
                        coordinate_transformation_mode="asymmetric">(small, , , sizes) }}""",
        "Conv Resize Shape",
    ),
    "lengths that no tensor has": (
        f"""(float[a,b] out) {{ {HALF}
           three = Constant<value_ints=[3]>()
           more = Add(height1, three)
           less = Add(width1, three)
           view = Concat<axis=0>(more, less)
           out = Expand(ONE, view) }}""",
        None,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_without_arithmetic(name: str) -> None:
    text, left = SHAPES[name]
    weights = "<float[8,4,3,3] CONV, float[1] ZERO = {0.0}, float[1,1] ONE = {1.0}>"
    outputs, body = text.split(")", 1)
    check(read_known_shapes, f"unet ({INPUTS}) => {outputs}) {weights} {body}", left)


def test_lengths_that_are_equal_at_some_sizes_only() -> None:
    """Half of h rounded up, and rounded down."""
    body = """{ one = Constant<value_int=1>()
        two = Constant<value_int=2>()
        s = Shape<start=2, end=3>(sample)
        up = Add(s, one)
        above = Div(up, two)
        below = Div(s, two)
        out = Sub(above, below) }"""
    known = lengths_at_trials(shaped(f"unet ({INPUTS}) => (int64[1] out) {body}").graph).values
    assert set(known["out"].ravel().tolist()) == {0, 1}


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("keeps", [0, 1])
def test_the_first_largest_integer(axis: int, keeps: int) -> None:
    """Most of these integers are equal to others."""
    body = f"{{ whole = Cast<to=7>(prompt) \n out = ArgMax<axis={axis}, keepdims={keeps}>(whole) }}"
    shape = ["rows", "tokens", "16"]
    shape[axis] = "1"
    if not keeps:
        del shape[axis]
    left = f"Cast {'Identity' if keeps else 'Squeeze'} TopK"
    check(use_top_k, f"unet ({INPUTS}) => (int64[{','.join(shape)}] out) {body}", left)


@pytest.mark.parametrize("kind", ["ArgMax<axis=1>(prompt)", "ArgMax<axis=1, select_last_index=1>(whole)"])
def test_other_largest_numbers_stay(kind: str) -> None:
    body = f"{{ whole = Cast<to=7>(prompt) \n a = {kind} \n b = Cast<to=1>(whole) \n c = ReduceMax<keepdims=0>(b) \n "
    body += "d = Cast<to=7>(c) \n out = Add(a, d) }"
    check(use_top_k, f"unet ({INPUTS}) => (int64[rows,1,16] out) {body}", None)


PER_ROW = """{ zero = Constant<value_int=0>()
    one = Constant<value_int=1>()
    counted = Shape<start=0, end=1>(OF)
    number = Squeeze(counted)
    rows = Range(zero, number, one)
    last = Constant<value_ints=[-1]>()
    first = Unsqueeze(rows, last)
    whole = Cast<to=7>(timestep)
    some = Abs(whole)
    four = Constant<value_int=4>()
    place = Mod(some, four)
    second = Unsqueeze(place, last)
    at = Concat<axis=-1>(first, second)
    out = GatherND(prompt, at) }"""
PICKED = "Abs Cast Constant Constant GatherND Mod Unsqueeze"


@pytest.mark.parametrize("of", ["prompt", "timestep"])
def test_one_token_of_every_row(of: str) -> None:
    """Whatever tensor the rows are counted by."""
    check(gather_per_row, f"unet ({INPUTS}) => (float[n,16] out) {PER_ROW.replace('OF', of)}", PICKED)


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("first = Unsqueeze(rows, last)", "column = Unsqueeze(rows, last) \n first = Abs(column)"),
        ("rows = Range(zero, number, one)", "ten = Sub(number, number) \n rows = Range(ten, number, one)"),
    ],
)
def test_rows_that_are_not_simply_counted(line: str, instead: str) -> None:
    text = f"unet ({INPUTS}) => (float[n,16] out) {PER_ROW.replace('OF', 'prompt').replace(line, instead)}"
    check(gather_per_row, text, None)


MASKED = """{ view = Constant<value_ints=[0,-1,2,8]>()
    q4 = Reshape(prompt, view)
    q = Transpose<perm=[0,2,1,3]>(q4)
    first = Shape<start=0, end=1>(prompt)
    rest = Constant<value_ints=[1,4,4]>()
    whole = Concat<axis=0>(first, rest)
    MASK
    out = Attention(q, q, q, mask) }"""
ATTENDED = "Attention Constant Reshape Transpose"
MASKS = {
    "spread over the rows, causal": ("1,0,0,0,1,1,0,0,1,1,1,0,1,1,1,1", "mask = Expand(WORDS, whole)", ATTENDED),
    "causal": ("1,0,0,0,1,1,0,0,1,1,1,0,1,1,1,1", "mask = Identity(WORDS)", None),
    "spread, of another kind": ("1,0,0,0,1,1,0,0,1,0,1,0,1,1,1,1", "mask = Expand(WORDS, whole)", ATTENDED),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    values, line, left = MASKS[name]
    inputs = INPUTS.replace("tokens", "4")
    weights = f"<bool[1,1,4,4] WORDS = {{{values}}}>"
    text = f"unet ({inputs}) => (float[rows,2,4,8] out) {weights} {MASKED.replace('MASK', line)}"
    changed = check(simplify_masks, text, left, tolerance=1e-6)
    (attention,) = (node for node in changed.graph if node.op_type == "Attention")
    assert (len(attention.inputs) == 3) == (name == "spread over the rows, causal")
    assert ("is_causal" in attention.attributes) == (name == "spread over the rows, causal")


GROUP_NORMS = {
    "of a convolution's output": (
        "{ y = GroupNormalization<num_groups=2, epsilon=0.001>(sample, SCALE, BIAS) \n out = Relu(y) }",
        "Add LayerNormalization Mul Relu Reshape Reshape",
    ),
    "as the graph's output": (
        "{ out = GroupNormalization<num_groups=1>(sample, SCALE, BIAS) }",
        "Add LayerNormalization Mul Reshape Reshape",
    ),
    "with a scale that is computed": (
        "{ scale = Relu(SCALE) \n out = GroupNormalization<num_groups=2>(sample, scale, BIAS) }",
        None,
    ),
}
WEIGHTS = "<float[4] SCALE = {1.0,2.0,-3.0,0.5}, float[4] BIAS = {0.0,1.0,2.0,-1.0}>"


@pytest.mark.parametrize("name", GROUP_NORMS)
def test_group_norms_as_layer_norms(name: str) -> None:
    body, left = GROUP_NORMS[name]
    check(use_layer_norm, f"unet ({INPUTS}) => (float[rows,4,h,w] out) {WEIGHTS} {body}", left, tolerance=2e-6)


def test_layer_norms_are_as_exact_as_instance_norms() -> None:
    """Against the definition in double precision, at the sizes of a real group."""
    text = """unet (float[rows,64,h,w] x) => (float[rows,64,h,w] out) <float[64] SCALE, float[64] BIAS>
        { out = GroupNormalization<num_groups=16, epsilon=0.00001>(x, SCALE, BIAS) }"""
    feeds = {name: 3 * value + 1 for name, value in inputs_of(parse(text), {"rows": 2, "h": 31, "w": 33}).items()}
    weights = {name: value.const_value.numpy().astype("f8") for name, value in parse(text).graph.initializers.items()}
    groups = feeds["x"].astype("f8").reshape(2, 16, -1)
    centred = groups - groups.mean(axis=-1, keepdims=True)
    normal = (centred / np.sqrt(groups.var(axis=-1, keepdims=True) + 1e-5)).reshape(feeds["x"].shape)
    wanted = normal * weights["SCALE"][:, None, None] + weights["BIAS"][:, None, None]
    errors = []
    for change in (use_layer_norm, use_instance_norm):
        model = shaped(text)
        change(model)
        errors.append(np.abs(run(model, feeds)["out"] - wanted).max())
    assert errors[0] <= 7e-7, errors
    assert errors[0] <= errors[1], errors


BLOCK = """{ product = MatMul(prompt, WEIGHT)
    linear = Add(product, BIAS)
    sum = Add(linear, prompt)
    normal = LayerNormalization<axis=-1, epsilon=0.001>(sum, SCALE, SHIFT)
    gate = Sigmoid(normal)
    out = Mul(gate, sum) }"""
FUSED = "MatMul Mul Sigmoid SkipLayerNormalization"
SKIPS = {
    "of a transformer's block": (BLOCK, FUSED),
    "with the operands the other way round": (
        BLOCK.replace("Add(product, BIAS)", "Add(BIAS, product)").replace("Add(linear, prompt)", "Add(prompt, linear)"),
        FUSED,
    ),
    "without a bias": (BLOCK.replace("Add(product, BIAS)", "Abs(product)"), f"Abs {FUSED}"),
    "whose sum nothing else reads": (BLOCK.replace("Mul(gate, sum)", "Mul(gate, prompt)"), FUSED),
    "whose biased sum is read as well": (
        BLOCK.replace("Mul(gate, sum)", "Mul(gate, linear)"),
        "Add MatMul Mul Sigmoid SkipLayerNormalization",
    ),
    "as the graph's outputs": (
        BLOCK.replace("gate = Sigmoid(normal)\n    out = Mul(gate, sum)", "").replace("normal =", "out ="),
        "MatMul SkipLayerNormalization",
    ),
    "of two axes": (BLOCK.replace("<axis=-1", "<axis=1").replace("SCALE, SHIFT", "ALL, ALL"), None),
    "of tensors that are spread": (BLOCK.replace("MatMul(prompt, WEIGHT)", "ReduceMax<keepdims=1>(prompt)"), None),
    "with a scale that is computed": (
        BLOCK.replace("normal =", "scale = Abs(SCALE) \n normal =").replace("(sum, SCALE", "(sum, scale"),
        None,
    ),
}


@pytest.mark.parametrize("name", SKIPS)
def test_bias_residual_and_norm(name: str) -> None:
    """ONNX Runtime adds in another order, so the last digit may differ."""
    body, left = SKIPS[name]
    inputs = INPUTS.replace("tokens", "5")
    weights = "<float[16,16] WEIGHT, float[16] BIAS, float[16] SCALE, float[16] SHIFT, float[5,16] ALL>"
    text = f"unet ({inputs}) => (float[rows,5,16] out) {weights} {body}"
    fused = check(fuse_skip_layer_norm, text, left, tolerance=2e-6)
    made = [node for node in fused.graph if node.domain == MICROSOFT]
    if made:
        assert bool(made[0].outputs[3].name) == ("sum)" in body.partition("gate")[2])


def test_weights_in_a_linked_file(tmp_path: Path) -> None:
    """The data file of a split U-Net is a hard link to the bundle's."""
    weights = "<float[1,8] ROW, float[4,8] A, float[4,8] B, float[4] A1, float[4] B1, float[4] SCALE, float[4] BIAS>"
    text = f"""unet ({INPUTS}) => (float[rows,4,h,w] out) {weights}
        {{ column = Constant<value_ints=[-1,1]>()
           t = Reshape(timestep, column)
           wide = MatMul(t, ROW)
           a = Gemm<transB=1>(wide, A, A1)
           b = Gemm<transB=1>(wide, B, B1)
           sum = Mul(a, b)
           image = Constant<value_ints=[0,0,1,1]>()
           s4 = Reshape(sum, image)
           n = GroupNormalization<num_groups=2>(sample, SCALE, BIAS)
           out = Add(n, s4) }}"""
    ir.save(shaped(text), tmp_path / "unet.onnx", external_data="unet.onnx.data", size_threshold_bytes=0)
    os.link(tmp_path / "unet.onnx.data", tmp_path / "another link")
    linked = ir.load(tmp_path / "unet.onnx")
    assert isinstance(linked.graph.initializers["A"].const_value, ir.ExternalTensor)
    merge_gemms(linked)
    use_layer_norm(linked)
    (tmp_path / "another link").unlink()
    feeds = inputs_of(linked, SIZES)
    ir.save(linked, tmp_path / "changed.onnx")
    model, changed = parse(text), ir.from_proto(onnx.load(tmp_path / "changed.onnx"))
    np.testing.assert_allclose(run(changed, feeds)["out"], run(model, feeds)["out"], atol=2e-6)


class BiasAdd(OpRun):
    """`com.microsoft.BiasAdd` as its schema says it."""

    op_domain = MICROSOFT

    def _run(self, x: Any, bias: Any, skip: Any) -> tuple[Any]:
        assert x.ndim == 3
        assert x.shape == skip.shape
        return (x + bias + skip,)


@pytest.mark.parametrize("width", [320, 640, 1280, 321])
def test_bias_and_residual(width: int) -> None:
    body = "{ p = MatMul(prompt, WIDE) \n s = Relu(p) \n linear = Add(p, BIAS) \n out = Add(s, linear) }"
    weights = f"<float[16,{width}] WIDE, float[{width}] BIAS>"
    text = f"unet ({INPUTS}) => (float[rows,tokens,{width}] out) {weights} {body}"
    model, fused = shaped(text), shaped(text)
    assert fuse_bias_add(fused).modified == (width != 321)
    assert operators(fused) == (operators(model) if width == 321 else ["BiasAdd", "MatMul", "Relu"])
    assert not fuse_bias_add(fused).modified, "a second run changes something"
    feeds = inputs_of(model, SIZES)
    found = ReferenceEvaluator(ir.to_proto(fused), new_ops=[BiasAdd]).run(["out"], feeds)[0]
    np.testing.assert_allclose(found, run(model, feeds)["out"], rtol=1e-5, atol=1e-5)


PROJECTIONS = """{ column = Constant<value_ints=[-1,1]>()
    t = Reshape(timestep, column)
    wide = MatMul(t, ROW)
    a = Gemm<transB=1>(wide, A, a1)
    b = Gemm<transB=1>(wide, B, b1)
    c = Gemm<transB=1>(wide, C, c1)
    ab = Add(a, b)
    cc = ReduceMax<keepdims=0>(c)
    out = Add(ab, cc) }"""


@pytest.mark.parametrize(
    ("text", "instead", "left"),
    [
        ("", "", "Add Add Constant Gemm Gemm MatMul ReduceMax Reshape Split"),
        ("b = Gemm<transB=1>", "b = Gemm<transB=1, alpha=2.0>", None),
        ("b = Gemm<transB=1>(wide", "other = Relu(wide) \n b = Gemm<transB=1>(other", None),
    ],
)
def test_products_of_one_tensor(text: str, instead: str, left: str | None) -> None:
    """A and B are as wide as each other; C is not."""
    weights = "<float[1,8] ROW, float[6,8] A, float[6,8] B, float[5,8] C, float[6] A1, float[6] B1, float[5] C1>"
    body = PROJECTIONS.replace(text, instead) if text else PROJECTIONS
    for name in ("a1", "b1", "c1"):
        body = body.replace(name, name.upper())
    check(merge_gemms, f"unet ({INPUTS}) => (float[rows,6] out) {weights} {body}", left, tolerance=1e-6)
