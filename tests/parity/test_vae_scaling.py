"""The exact fp16 VAE: values far beyond fp16's range, and what latentrt makes of them."""

import copy
import itertools
import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from checkpoints import write_sdxl
from diffusers import AutoencoderKL
from exports import export_components
from typer.testing import CliRunner
from vaes import HALVES, SPIKES, blow_up, fit, half, inputs, run, spike, tiny_vae, waking

from latentrt.cli.main import application
from latentrt.engine.build import build_engines
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.checks.layers import first_departure
from latentrt.export.component import ComponentExporter
from latentrt.export.exporter import component_precisions
from latentrt.export.modules import MODULES
from latentrt.export.numerics import vae_scaling
from latentrt.export.numerics.islands import LIMIT
from latentrt.export.numerics.ranges import measure
from latentrt.export.numerics.vae_scaling import QUIET, choose_exponents, fold
from latentrt.export.numerics.vae_signals import vae_signals
from latentrt.export.sample_inputs import sample_inputs
from latentrt.export.tolerance import relative_error
from latentrt.export.trace import save, trace
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.errors import ParityError

LEVELS = {
    "everywhere the same": (17, 17, 17, 17),
    "rising": (12, 14, 17, 20),
    "falling": (20, 17, 13, 12),
    "jumping": (20, 12, 20, 12),
    "one level only": (0, 0, 20, 0),
}
"""Exponents by resolution level, in the order in which a half runs."""

INNER = (12, 20, 15, 0, 18)


def blown(component: str, levels: str) -> AutoencoderKL:
    return blow_up(tiny_vae(), component, LEVELS[levels], itertools.cycle(INNER).__next__)


@pytest.mark.parametrize("component", HALVES)
def test_a_healthy_vae_is_left_as_it_is(component):
    healthy, fitted = tiny_vae(), tiny_vae()
    record = fit(fitted, component)
    assert (record.scales, record.islands, record.float32_layers, record.folding_error) == ({}, (), (), 0.0)
    assert record.largest == max(record.ranges.values()) < 100
    for (name, wanted), found in zip(
        half(healthy).state_dict().items(), half(fitted).state_dict().values(), strict=True
    ):
        assert torch.equal(found, wanted), name
    for (name, wanted), found in zip(healthy.named_modules(), fitted.modules(), strict=True):
        assert getattr(found, "eps", None) == getattr(wanted, "eps", None), name


@pytest.mark.parametrize("component", HALVES)
@pytest.mark.parametrize("levels", LEVELS)
def test_a_blown_up_vae_is_as_good_in_fp16_as_the_healthy_one(component, levels):
    samples, vae, healthy = inputs(component), blown(component, levels), tiny_vae()
    wanted = run(healthy, component, samples)
    assert torch.equal(run(vae, component, samples), wanted)
    assert not run(half(vae), component, samples, torch.float16).isfinite().all()

    record = fit(vae, component)
    assert (record.islands, record.folding_error) == ((), 0.0)
    assert len(record.scales) >= 3
    assert max(record.ranges.values()) > 65504 > 4 * record.largest
    error = relative_error(run(half(vae), component, samples, torch.float16), wanted)
    assert error <= 1.2 * relative_error(run(half(healthy), component, samples, torch.float16), wanted)


@pytest.mark.parametrize("component", HALVES)
@pytest.mark.parametrize("levels", LEVELS)
def test_the_scaled_float32_network_gives_the_same_bits(component, levels):
    samples, vae = inputs(component), blown(component, levels)
    scaled = copy.deepcopy(vae)
    signals = vae_signals(scaled, component)
    fold(signals, choose_exponents(signals, ranges(scaled, component)))
    assert torch.equal(run(scaled, component, samples), run(vae, component, samples))
    assert max(ranges(scaled, component).named.values()) <= LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("component", HALVES)
def test_the_scaled_float32_graph_gives_the_same_bits(component, tmp_path):
    vae, found = blown(component, "jumping"), []
    spec = vae_specs(write_checkpoint(tmp_path / "checkpoint", vae), "fp32")[component]
    signals = vae_signals(vae, component)
    for exponents in ({}, choose_exponents(signals, ranges(vae, component))):
        fold(signals, exponents)
        save(trace(MODULES[component][1](vae), spec, 0), spec, tmp_path / "vae.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "vae.onnx", providers=["CPUExecutionProvider"])
        found.append(session.run(None, {spec.inputs[0].name: inputs(component)[0].numpy()}))
    for before, after in zip(*found, strict=True):
        assert np.array_equal(before, after)


def ranges(vae, component):
    return measure(vae, lambda sample: run(vae, component, [sample]), inputs(component)).ranges


def test_latents_of_three_times_the_samples_spread(monkeypatch):
    """High guidance and odd latents: values grow faster than the latents do, and the headroom is for that."""
    vae, sample = waking(tiny_vae()), 3 * inputs("vae_decoder")[0]
    wanted = run(vae, "vae_decoder", [sample])
    fitted = copy.deepcopy(vae)
    record = fit(fitted, "vae_decoder")
    assert (record.islands, record.folding_error) == ((), 0.0)
    assert record.largest <= 4 * QUIET
    assert psnr(run(half(fitted), "vae_decoder", [sample], torch.float16), wanted) > 45

    monkeypatch.setattr(vae_scaling, "QUIET", LIMIT)
    fit(vae, "vae_decoder")
    assert not run(half(vae), "vae_decoder", [sample], torch.float16).isfinite().all()


def psnr(found, wanted):
    """In decibels, of pictures in -1 … 1, clamped as they are drawn."""
    error = (found.float().clamp(-1, 1) - wanted.clamp(-1, 1)).pow(2).mean().item()
    return 10 * math.log10(4 / error)


@pytest.mark.parametrize("component", HALVES)
def test_a_spike_inside_a_normalised_branch_becomes_an_island(component):
    samples, vae = inputs(component), spike(tiny_vae(), component)
    wanted = run(vae, component, samples)
    assert not run(half(vae), component, samples, torch.float16).isfinite().all()
    record = fit(vae, component)
    assert record.islands == (SPIKES[component],)
    assert (record.float32_layers, record.scales) == ((f"{SPIKES[component]}.conv2",), {})
    assert relative_error(run(half(vae), component, samples, torch.float16), wanted) < 5e-3


@pytest.mark.parametrize("component", HALVES)
def test_attention_whose_logits_overflow_becomes_an_island(component):
    samples, vae = inputs(component), tiny_vae()
    name = f"{component.removeprefix('vae_')}.mid_block.attentions.0"
    with torch.no_grad():
        # A constant in every key adds to all logits of a row alike, which softmax takes away again.
        vae.get_submodule(f"{name}.to_k").bias.add_(8000.0)
    wanted = run(vae, component, samples)
    record = fit(vae, component)
    assert record.islands == (name,)
    assert set(record.float32_layers) == {f"{name}{part}" for part in ("", ".to_q", ".to_k", ".to_v")}
    assert record.ranges[f"{name}.logits"] > LIMIT
    assert relative_error(run(half(vae), component, samples, torch.float16), wanted) < 5e-3


def test_queries_that_overflow_are_scaled_against_the_keys():
    samples, vae, name = inputs("vae_decoder"), tiny_vae(), "decoder.mid_block.attentions.0"
    wanted = run(vae, "vae_decoder", samples)
    with torch.no_grad():
        for part, factor in (("to_q", 2.0**18), ("to_k", 2.0**-18)):
            vae.get_submodule(f"{name}.{part}").weight.mul_(factor)
            vae.get_submodule(f"{name}.{part}").bias.mul_(factor)
    record = fit(vae, "vae_decoder")
    assert record.islands == ()
    assert record.scales[f"{name}.to_q"] == -record.scales[f"{name}.to_k"] == pytest.approx(-18, abs=1)
    assert relative_error(run(half(vae), "vae_decoder", samples, torch.float16), wanted) < 5e-3


def write_checkpoint(folder: Path, vae: AutoencoderKL) -> Checkpoint:
    write_sdxl(folder)
    vae.save_pretrained(folder / "vae")
    return Checkpoint.open(folder)


def vae_specs(checkpoint: Checkpoint, precision: str):
    return component_specs(checkpoint.model, Limits.around(128), component_precisions("fp16", precision), HALVES)


def vae_bundle(folder: Path, vae: AutoencoderKL, names: tuple[str, ...]) -> Bundle:
    """A bundle with nothing but halves of a VAE in fp16."""
    return export_components(folder / "bundle", write_checkpoint(folder / "checkpoint", vae), names)


@pytest.fixture(scope="module")
def blown_bundle(tmp_path_factory) -> Bundle:
    vae = blown("vae_decoder", "jumping")
    vae = blow_up(vae, "vae_encoder", LEVELS["rising"], itertools.cycle(INNER).__next__)
    return vae_bundle(tmp_path_factory.mktemp("blown"), vae, HALVES)


def test_every_convolution_of_the_tensorrt_networks_is_fp16(blown_bundle):
    pytest.importorskip("tensorrt_rtx")
    build = build_engines(blown_bundle, "tensorrt-rtx")
    for name in HALVES:
        layers = build.engines[name].layers
        assert {"ATTENTION_INPUT float16", "CONVOLUTION float16", "MATRIX_MULTIPLY float16"} <= layers.keys()
        heavy = {kind for kind in layers if kind.startswith(("CONVOLUTION", "MATRIX_MULTIPLY", "ATTENTION"))}
        assert {kind.split()[1] for kind in heavy} == {"float16"}


def test_onnx_files_agree_with_torch_and_say_how(blown_bundle):
    for part in blown_bundle.manifest.components.values():
        assert max(figure.relative for figure in part.parity) < 5e-3
        assert part.numerics.scales
        assert not part.numerics.islands
    result = CliRunner().invoke(application(), ["inspect", str(blown_bundle.path)], env={"COLUMNS": "250"})
    scales = blown_bundle.manifest.components["vae_decoder"].numerics.scales
    assert f"post_quant_conv 2^{scales['post_quant_conv']}" in result.output
    shown = json.loads(result.output.strip().splitlines()[-1])["manifest"]["components"]["vae_decoder"]["numerics"]
    assert shown["scales"] == scales


@pytest.mark.slow  # test_islands.py builds islands of the U-Net and the encoders in the default run
def test_an_island_is_in_the_graph_and_declared_to_the_builder(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    bundle = vae_bundle(tmp_path, spike(tiny_vae(), "vae_decoder"), ("vae_decoder",))
    graph = onnx.load(bundle.onnx("vae_decoder")).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = [weights[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert kinds.count(onnx.TensorProto.FLOAT) == 1
    assert set(kinds) == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    layers = build_engines(bundle, "tensorrt-rtx").engines["vae_decoder"].layers
    assert layers["CONVOLUTION float32"] == 1
    assert layers["CONVOLUTION float16"] == len(kinds) - 1


def test_a_vae_that_fp16_cannot_hold_falls_back_aloud_or_fails(tmp_path, caplog):
    vae = tiny_vae()
    with torch.no_grad():
        # Scaled into range, the other channels of this stream vanish; they are in other groups, so float32 keeps them.
        vae.decoder.up_blocks[3].resnets[0].conv2.bias[0] = 2.0**40
    checkpoint = write_checkpoint(tmp_path / "checkpoint", vae)
    spec, fallback = (vae_specs(checkpoint, precision)["vae_decoder"] for precision in ("fp16", "fp32"))
    phases: list[str] = []
    exporter = ComponentExporter(checkpoint, tmp_path, "fp16", "quick", phase=phases.append)
    message = (
        r"^vae_decoder: fp16 differs from float32 by .* over 4 samples, allowed 3e-02\. Export with --vae-precision fp"
    )
    with pytest.raises(ParityError, match=message):
        exporter.export(spec, "fp16")
    assert phases == ["loading weights", "computing with torch", "measuring for fp16"]
    record = exporter.export(spec, "fp16", fallback)
    assert (record.precision, record.numerics) == ("fp32", None)
    assert record.inputs["latent"].startswith("float32")
    assert "vae_decoder stays in fp32, slower and larger: vae_decoder: fp16 differs" in caplog.text


@pytest.mark.parametrize(
    ("bundle", "asked", "vae"),
    [("fp16", "auto", "fp16"), ("fp16", "fp32", "fp32"), ("fp32", "auto", "fp32"), ("fp32", "fp16", "fp16")],
)
def test_the_vae_has_the_precision_that_was_asked_for(bundle, asked, vae):
    found = component_precisions(bundle, asked)
    assert {found[name] for name in HALVES} == {vae}
    assert {found[name] for name in found.keys() - set(HALVES)} == {bundle}


@pytest.mark.slow
def test_layers_compares_scaled_tensors_with_a_reference_scaled_alike(blown_bundle, tmp_path):
    checkpoint = Checkpoint.open(blown_bundle.path.parent / "checkpoint")
    spec = blown_bundle.manifest.specs()["vae_decoder"]
    scales = blown_bundle.manifest.components["vae_decoder"].numerics.scales
    sample = {"latent": sample_inputs(spec, spec.sizes("min"), 0)["latent"].numpy()}
    file, spoilt = blown_bundle.onnx("vae_decoder"), tmp_path / "vae_decoder.onnx"
    assert first_departure(file, spec, checkpoint, sample, 3e-2, scales) is None
    model = onnx.load(file)
    name = "network.decoder.up_blocks.1.resnets.0.conv2.weight"
    (weight,) = (one for one in model.graph.initializer if one.name == name)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float16(1.1), name))
    onnx.save(model, spoilt)
    departure = first_departure(spoilt, spec, checkpoint, sample, 3e-2, scales)
    (node,) = (node for node in model.graph.node if departure.tensor in node.output)
    assert (node.op_type, node.input[1], departure.compared > 50) == ("Conv", name, True)
    unscaled = first_departure(file, spec, checkpoint, sample, 3e-2)
    assert unscaled.compared < departure.compared
