"""Slots for LoRAs in a graph: every kind of layer computes y + ((x · A) · s) · B, and the split keeps that."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import inputs_of, parse, run

from latentrt.engine.passes.hoist import hoist
from latentrt.engine.passes.lora_slots import add_lora_slots
from latentrt.runtime.bundle.engine_key import EngineKey
from latentrt.runtime.bundle.lora_slots import LAYER_KEY, STRENGTHS, LoraSlots, has_slots, recorded_slots
from latentrt.runtime.bundle.specs import ComponentSpec, Dim, port

RANK = 3
SIZES = {"rows": 2, "tokens": 5, "h": 3, "w": 4}
LAYERS = {
    "key": "down_blocks.0.attentions.0.attn2.to_k",
    "query": "down_blocks.0.attentions.0.attn1.to_q",
    "time": "time_embedding.linear_1",
    "narrow": "down_blocks.0.attentions.0.proj_in",
    "wide": "conv_in",
    "noise": "conv_out",
}
UNET = """unet (float[rows,4,h,w] sample, float[rows] timestep, float[rows,tokens,16] prompt)
    => (float[rows,6,h,w] noise)
    <float[6,4,3,3] CONV, float[6] BIAS, float[5,6,1,1] NARROW, float[6,5,1,1] BACK, float[16,6] KEY, float[6,6] QUERY,
     float[6] QUERY_BIAS, float[6,1] TIME, float[6,6,1,1] OUT>
    { wide = Conv<pads=[1,1,1,1]>(sample, CONV, BIAS)
      narrow = Conv(wide, NARROW)
      back = Conv(narrow, BACK)
      flat_shape = Constant<value_ints=[0,6,-1]>()
      flat = Reshape(back, flat_shape)
      x = Transpose<perm=[0,2,1]>(flat)
      query = MatMul(x, QUERY)
      query_bias = Add(query, QUERY_BIAS)
      key = MatMul(prompt, KEY)
      attended = Attention<q_num_heads=2, kv_num_heads=2>(query_bias, key, key)
      column = Constant<value_ints=[-1,1]>()
      t1 = Reshape(timestep, column)
      time = Gemm<transB=1>(t1, TIME)
      middle = Constant<value_ints=[0,1,-1]>()
      t3 = Reshape(time, middle)
      sum = Add(attended, t3)
      turned = Transpose<perm=[0,2,1]>(sum)
      like = Shape(wide)
      pixels = Reshape(turned, like)
      noise = Conv(pixels, OUT) }"""


def named() -> ir.Model:
    """The graph as an export leaves it, each layer's name on its node."""
    model = parse(UNET)
    for node in model.graph:
        if (name := LAYERS.get(str(node.outputs[0].name))) is not None:
            node.metadata_props[LAYER_KEY] = name
    return model


def folded(draw: dict[str, np.ndarray], row: int) -> ir.Model:
    """The graph with one row's LoRA in the weights, in plain arithmetic."""
    model = parse(UNET)
    strengths = draw[STRENGTHS][row, 0]
    for output, name in LAYERS.items():
        a, b = draw.get(f"{name}.lora_A"), draw.get(f"{name}.lora_B")
        if a is None or b is None:
            continue
        node = next(node for node in model.graph if node.outputs[0].name == output)
        weights = node.inputs[1]
        before = weights.const_value.numpy()
        if a.ndim == 4:
            change = np.einsum("or,r,rikl->oikl", b[:, :, 0, 0], strengths, a)
        else:
            change = np.einsum("ir,r,ro->io", a, strengths, b)
            change = change.T if node.op_type == "Gemm" else change
        weights.const_value = ir.tensor((before + change).astype("f4"), name=weights.name)
    return model


@pytest.mark.parametrize(("layers", "count"), [("attention", 3), ("all", 6)])
@pytest.mark.parametrize("split", [False, True])
def test_every_row_has_its_own_strengths(layers, count, split):
    model = named()
    ports = add_lora_slots(model, LoraSlots(rank=RANK, layers=layers), "rows")
    assert len(ports) == 2 * count + 1
    assert [str(value.name) for value in ports][-1] == STRENGTHS
    feeds = inputs_of(model, SIZES | {"rows": 3})
    feeds[STRENGTHS] = np.array([[[1, 0.5, 0]], [[0, 0, 0]], [[-1, 0, 2]]], "f4")
    if split:
        parts = hoist(model, ("sample", "timestep"))
        assert parts is not None
        names = {str(value.name) for value in parts.prologue.graph.inputs}
        assert f"{LAYERS['key']}.lora_A" in names  # the prompt's products leave the loop, their bypass too
        found = run(parts.body, feeds | run(parts.prologue, feeds))["noise"]
    else:
        found = run(model, feeds)["noise"]
    for row in range(3):
        wanted = run(folded(feeds, row), {name: feeds[name] for name in ("sample", "timestep", "prompt")})["noise"]
        np.testing.assert_allclose(found[row], wanted[row], rtol=2e-4, atol=2e-4)
    plain = run(parse(UNET), feeds)["noise"]
    np.testing.assert_allclose(found[1], plain[1], rtol=1e-5, atol=1e-5)
    assert np.abs(found[0] - plain[0]).max() > 0.1


def test_half_precision_layers_take_half_precision_matrices():
    model = named()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        if value.name != "timestep":
            value.dtype = ir.DataType.FLOAT16
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype("f2"), name=value.name)
    ports = {str(value.name): value for value in add_lora_slots(model, LoraSlots(rank=RANK), "rows")}
    assert {value.dtype for name, value in ports.items() if name != STRENGTHS} == {ir.DataType.FLOAT16}
    assert ports[STRENGTHS].dtype == ir.DataType.FLOAT


def test_a_graph_whose_layers_have_no_names_gets_no_slots():
    model = parse(UNET)
    assert add_lora_slots(model, LoraSlots(rank=RANK), "rows") == ()
    assert [value.name for value in model.graph.inputs] == ["sample", "timestep", "prompt"]


def test_slots_are_read_back_from_the_keys_of_a_build():
    dims = {"rows": Dim("rows", 1, 2, 4)}
    spec = ComponentSpec(
        "unet", (port("sample", "float16", "rows", 4),), (port("noise_pred", "float16", "rows", 4),), dims
    )
    table = {"sample": "float16[rows, 4]", "a.lora_A": "float16[4, 8]", STRENGTHS: "float32[rows, 1, 8]"}
    key = EngineKey(
        component="unet_body", content="", inputs=table, outputs={}, dims={}, precision="fp16", backend="b",
        backend_version="1", target="t", latentrt="0",
    )  # fmt: skip
    assert not has_slots(spec)
    found = recorded_slots({"unet": spec, "sampler": spec}, {"unet_body": key})
    assert [one.name for one in found["unet"].inputs] == ["sample", "a.lora_A", STRENGTHS]
    assert found["sampler"] is spec
