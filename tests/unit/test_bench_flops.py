"""Work counted from ONNX graphs: each operator by hand, shapes that the graph computes, published figures."""

import os
from pathlib import Path

import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latentrt.benchmarks import CONFIGS
from latentrt.benchmarks.flops import count
from latentrt.benchmarks.results import Peaks
from latentrt.benchmarks.roofline import floor_seconds
from latentrt.runtime.errors import BenchmarkError


def write(folder: Path, text: str) -> Path:
    file = folder / "graph.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 23]>\n{text}'), file)
    return file


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("g (float[2,3,8,8] x, float[6,3,3,3] w) => (float[2,6,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", 41472),
        (
            "g (float[1,4,8,8] x, float[4,1,3,3] w) => (float[1,4,4,4] y) "
            "{ y = Conv<pads=[1,1,1,1], strides=[2,2], group=4>(x, w) }",
            2 * 64 * 9,
        ),
        ("g (float[5,7,3] a, float[3,11] b) => (float[5,7,11] y) { y = MatMul(a, b) }", 2 * 5 * 7 * 3 * 11),
        ("g (float[3,5] a, float[3,11] b) => (float[5,11] y) { y = Gemm<transA=1>(a, b) }", 2 * 5 * 3 * 11),
        (
            "g (float[2,4,10,8] q, float[2,4,7,8] k, float[2,4,7,6] v) => (float[2,4,10,6] y) "
            "{ y = Attention(q, k, v) }",
            2 * 2 * 4 * 10 * 7 * (8 + 6),
        ),
        (
            "g (float[2,10,32] q, float[2,7,32] k, float[2,7,32] v) => (float[2,10,32] y) "
            "{ y = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) }",
            2 * 2 * 10 * 7 * 64,
        ),
        ("g (float[2,3] x) => (float[2,3] y) { y = Add(x, x) }", 0),
    ],
)
def test_one_operator(tmp_path, text, flops):
    assert count(write(tmp_path, text), {}).total_flops == flops


def test_bytes_of_weights_ports_and_everything_unfused(tmp_path):
    file = write(
        tmp_path,
        "g (float16[n,4] x) => (float16[n,4] z) <float16[4,4] w = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}> "
        "{ y = MatMul(x, w) z = Relu(y) }",
    )
    work = count(file, {"n": 5})
    assert work.weight_bytes == 2 * 16
    assert work.port_bytes == 2 * 2 * 20
    assert work.activation_bytes == 4 * 2 * 20
    assert work.least_bytes == 112


def test_shapes_that_the_graph_computes_behind_an_operator_that_inference_does_not_know(tmp_path):
    """GroupNormalization stops onnx's inference; the reshape's target depends on the input's own shape."""
    file = write(
        tmp_path,
        """g (float[n,8,h,w] x) => (float[a,b,c] y)
        <float[8] s = {1,1,1,1,1,1,1,1}, float[8,16] weight>
        { u = GroupNormalization<num_groups=2>(x, s, s)
          shape = Shape(u)
          first = Constant<value_ints=[0]>()
          rows = Gather(shape, first)
          area = Constant<value_ints=[-1]>()
          width = Constant<value_ints=[8]>()
          target = Concat<axis=0>(rows, area, width)
          v = Transpose<perm=[0,2,3,1]>(u)
          flat = Reshape(v, target)
          weight2 = Identity(weight)
          y = MatMul(flat, weight2) }""".replace(
            "float[8,16] weight", "float[8,2] weight = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}"
        ),
    )
    assert count(file, {"n": 3, "h": 5, "w": 7}).total_flops == 2 * 3 * 35 * 8 * 2


def test_an_axis_without_a_size(tmp_path):
    file = write(tmp_path, "g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")
    with pytest.raises(BenchmarkError, match=r"^x: no size given for its axis n; have \{'m': 2\}$"):
        count(file, {"m": 2})


def test_a_product_whose_shape_nobody_knows(tmp_path):
    file = write(
        tmp_path,
        "g (float[4,4] x, float[4] c) => (float[a,b] y) { i = NonZero(c) j = Transpose(i) f = Cast<to=1>(j) "
        "k = MatMul(f, f) y = MatMul(k, x) }",
    )
    with pytest.raises(
        BenchmarkError, match=r"the shape of f at MatMul .* cannot be inferred from .*Export the bundle"
    ):
        count(file, {})


@pytest.mark.parametrize(
    ("folder", "shapes", "teraflops"),
    [
        ("unet", {"sample": (1, 4, 128, 128), "encoder_hidden_states": (1, 77, 2048)}, 6.76),
        ("vae", {"latent": (1, 4, 128, 128)}, 10.47),
    ],
)
def test_full_size_sdxl_at_1024_without_its_weights(folder, shapes, teraflops):
    """torch's own count on the meta device agrees with the published figures that the ONNX count is held to."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        kind = UNet2DConditionModel if folder == "unet" else AutoencoderKL
        network = kind.from_config(kind.load_config(CONFIGS / "sdxl-base" / folder))
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if folder == "vae":
                network.decode(tensors["latent"])
            else:
                extra = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
                network(timestep=torch.empty(1), added_cond_kwargs=extra, **tensors)
    assert counter.get_total_flops() / 1e12 == pytest.approx(teraflops, rel=0.01)


FULL = os.environ.get("LATENTRT_FULL_SDXL", "")


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="LATENTRT_FULL_SDXL names no full-size export's folder of ONNX files")
@pytest.mark.parametrize(("component", "teraflops"), [("unet", 6.76), ("vae_decoder", 10.47)])
def test_a_full_size_export_at_1024(component, teraflops):
    sizes = {"rows": 1, "vae_images": 1, "tokens": 77, "latent_height": 128, "latent_width": 128}
    assert count(Path(FULL) / f"{component}.onnx", sizes).total_flops / 1e12 == pytest.approx(teraflops, rel=0.01)


def test_the_floor_is_the_larger_of_arithmetic_and_traffic(tmp_path):
    file = write(tmp_path, "g (float[64,64] a, float[64,64] b) => (float[64,64] y) { y = MatMul(a, b) }")
    work = count(file, {})
    flops, least = 2 * 64**3, 3 * 4 * 64**2
    assert floor_seconds(work, "fp32", Peaks("cpu", {"fp32": 1e-6}, 1e9, "")) == pytest.approx(flops / 1e6)
    assert floor_seconds(work, "fp32", Peaks("cpu", {"fp32": 1e9}, 1e-6, "")) == pytest.approx(least / 1e3)
