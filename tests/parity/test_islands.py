"""U-Nets and text encoders whose values leave fp16's range somewhere: the islands that the export finds."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoints import write_sdxl
from exports import export_components
from networks import (
    BLOCK,
    MLP,
    RESNET,
    SMALL_UNET,
    TRANSFORMER,
    changed,
    fit,
    inputs,
    large_feed_forward,
    large_logits,
    large_residual_branch,
    large_stream,
    large_text_branch,
    large_text_stream,
    large_transformer_stream,
    plain_fp16,
    run,
    small_text_encoder,
    small_unet,
)

from latentrt.engine.build import build_engines
from latentrt.engine.graph import heavy_nodes, read_graph
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.numerics.fp16 import fit_to_fp16
from latentrt.export.numerics.islands import LIMIT
from latentrt.export.numerics.ranges import logits_name, measure
from latentrt.export.numerics.widening import overflows, widened
from latentrt.export.tolerance import relative_error
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import ParityError

FP16_ERROR = 5e-3
"""What fp16 costs the healthy networks here is 2.4e-3 (U-Net) and 8e-4 (text encoder)."""

STREAM = {
    "conv_in",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0.conv_shortcut",
    "up_blocks.0.upsamplers.0.conv",
    *(f"up_blocks.{level}.resnets.{index}.conv_shortcut" for level in (0, 1) for index in (0, 1)),
}

ATTENTION = ("", ".to_q", ".to_k", ".to_v")

CASES = {
    "logits": (small_unet, large_logits, f"{BLOCK}.attn1", {f"{BLOCK}.attn1{part}" for part in ATTENTION}),
    "residual branch": (small_unet, large_residual_branch, RESNET, {f"{RESNET}.conv1", f"{RESNET}.time_emb_proj"}),
    "feed-forward": (small_unet, large_feed_forward, f"{BLOCK}.ff", {f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2"}),
    "transformer's stream": (
        small_unet,
        large_transformer_stream,
        TRANSFORMER,
        {f"{TRANSFORMER}.proj_in", f"{TRANSFORMER}.proj_out"},
    ),
    "stream": (small_unet, large_stream, "the network's own code", STREAM),
    "text branch": (small_text_encoder, large_text_branch, MLP, {f"{MLP}.fc1", f"{MLP}.fc2"}),
}
"""Network, what is wrong with it, the island that it needs, and the layers of it that must be float32."""


@pytest.mark.parametrize("case", CASES)
def test_an_island_appears_exactly_where_it_is_needed(case):
    make, change, island, layers = CASES[case]
    module = changed(make(), change)
    wanted = run(module)
    ranges = measure(module.network, lambda sample: module(*sample), [inputs(module)]).ranges
    assert not relative_error(plain_fp16(module), wanted) < 0.1

    record = fit(module)
    assert (record.islands, set(record.float32_layers)) == ((island,), layers)
    assert max(record.ranges.values()) > LIMIT >= record.largest
    assert relative_error(run(module, torch.float16), wanted) < FP16_ERROR
    for layer in layers:
        attention = logits_name(layer.rpartition(".to_")[0] or layer)
        touched = (ranges.inputs[layer], ranges.outputs[layer], ranges.named.get(attention, 0.0))
        assert max(touched) > LIMIT, f"{layer} could be fp16"


@pytest.mark.parametrize("case", ["logits", "residual branch", "text branch"])
def test_weights_that_are_held_in_fp16_give_the_same(case):
    make, change, island, layers = CASES[case]
    module = changed(make(), change)
    narrow = copy.deepcopy(module).half()
    assert not overflows(narrow)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half().float()
    with widened(narrow.network):
        found = fit(narrow)
    assert found == fit(module)
    assert (found.islands, set(found.float32_layers)) == ((island,), layers)
    assert {name: value.dtype for name, value in narrow.named_parameters()} == {
        name: value.dtype for name, value in module.named_parameters()
    }
    torch.testing.assert_close(run(narrow, torch.float16), run(module, torch.float16), rtol=0, atol=0)


def test_a_checkpoint_that_asks_for_upcast_attention_is_measured_like_others():
    module = small_unet(upcast_attention=True)
    assert fit(copy.deepcopy(module)).islands == ()
    module = changed(module, large_logits)
    wanted = run(module)
    assert fit(module).islands == (f"{BLOCK}.attn1",)
    assert relative_error(run(module, torch.float16), wanted) < FP16_ERROR


def test_a_stream_without_headroom_needs_no_float32_layer():
    module = changed(small_text_encoder(), large_text_stream)
    wanted = run(module)
    record = fit(module)
    assert (record.islands, record.float32_layers) == (("the network's own code",), ())
    found = run(module, torch.float16)
    assert found.dtype == torch.float16
    assert relative_error(found, wanted) < FP16_ERROR


@pytest.mark.parametrize("make", [small_unet, small_text_encoder])
def test_a_healthy_network_is_cast_as_it_is(make):
    module = make()
    wanted = plain_fp16(module)
    record = fit(module)
    assert (record.islands, record.float32_layers, record.scales) == ((), (), {})
    assert not any(part._forward_pre_hooks for part in module.modules())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
    assert torch.equal(run(module, torch.float16), wanted)


def test_weights_beyond_fp16_stay_float32():
    module = small_text_encoder()
    with torch.no_grad():
        module.network.text_projection.weight[0, 0] = 1e5
        module.network.text_model.final_layer_norm.weight[0] = 0.0
        module.network.text_model.final_layer_norm.bias[0] = 0.0
    assert overflows(copy.deepcopy(module).half())  # and so are loaded in float32
    record = fit(module)
    assert record.float32_layers == ("text_projection",)
    assert module(*inputs(module))[1].isfinite().all()


def test_a_network_that_fp16_cannot_hold_is_refused():
    module = small_text_encoder()
    with torch.no_grad():
        # Values far below fp16's smallest number, which a norm makes large again: no range shows that.
        for part in module.network.text_model.embeddings.children():
            part.weight.mul_(1e-9)
        for layer in module.network.text_model.encoder.layers:
            layer.layer_norm1.eps = 0.0
    message = r"^text_encoder_2: fp16 differs from float32 by .* over 1 samples, allowed 3e-02\. Export with --prec"
    with pytest.raises(ParityError, match=message):
        fit_to_fp16("text_encoder_2", module.network, lambda sample: module(*sample), [inputs(module)])


def test_outputs_that_fp16_ports_cannot_hold_are_refused():
    module = small_text_encoder()
    with torch.no_grad():
        module.network.text_model.embeddings.position_embedding.weight[:, 3] += 1e5
    with pytest.raises(ParityError, match=r"^network: fp16 differs from float32 by inf \(relative\)"):
        fit(module)


def spoilt_bundle(folder: Path) -> Bundle:
    """A U-Net and a text encoder in fp16 that need islands of every kind, exported and compared with torch."""
    write_sdxl(folder / "checkpoint", unet=SMALL_UNET)
    checkpoint = Checkpoint.open(folder / "checkpoint")
    unet, encoder = (checkpoint.network(name, torch.float32) for name in ("unet", "text_encoder_2"))
    with torch.no_grad():
        for change in (large_logits, large_residual_branch, large_feed_forward, large_transformer_stream):
            change(unet)
        large_text_branch(encoder)
    unet.save_pretrained(folder / "checkpoint" / "unet")
    encoder.save_pretrained(folder / "checkpoint" / "text_encoder_2")
    return export_components(folder / "bundle", checkpoint, ("text_encoder_2", "unet"))


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> Bundle:
    return spoilt_bundle(tmp_path_factory.mktemp("spoilt"))


def test_the_graphs_agree_with_torch_and_hold_the_islands(spoilt):
    for name, part in spoilt.manifest.components.items():
        assert max(figure.relative for figure in part.parity) < 1e-2
        layers = heavy_nodes(read_graph(spoilt.onnx(name)))
        assert sum(layer.dtype == "float32" for layer in layers) == len(part.numerics.float32_layers)
        assert {layer.dtype for layer in layers} == {"float16", "float32"}
    assert len(spoilt.manifest.components["unet"].numerics.islands) == 4


def test_tensorrt_parses_as_many_float32_layers_as_were_declared(spoilt):
    pytest.importorskip("tensorrt_rtx")
    build = build_engines(spoilt, "tensorrt-rtx")
    for name, part in spoilt.manifest.components.items():
        heavy = ("CONVOLUTION", "MATRIX_MULTIPLY", "ATTENTION_INPUT", "EINSUM")
        engines = ("unet_prologue", "unet_body") if name == "unet" else (name,)
        counts = sum((Counter(build.engines[engine].layers) for engine in engines), Counter())
        found = sum(count for kind, count in counts.items() if kind in {f"{one} float32" for one in heavy})
        assert found == len(part.numerics.float32_layers) > 0
        assert sum(count for kind, count in counts.items() if kind in {f"{one} float16" for one in heavy}) > found
