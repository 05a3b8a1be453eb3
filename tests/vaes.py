"""Tiny VAEs, some with values that leave fp16's range, and how they are run."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from checkpoints import randomise
from diffusers import AutoencoderKL, AutoencoderTiny
from families import family_configs
from torch import Tensor

from latentrt.export.numerics.islands import to_fp16
from latentrt.export.numerics.vae_samples import vae_samples
from latentrt.export.numerics.vae_scaling import fit_vae_to_fp16
from latentrt.runtime.bundle.manifest import NumericsRecord

HALVES = ("vae_decoder", "vae_encoder")


def tiny_vae(**changes: Any) -> AutoencoderKL:
    """A healthy VAE with SDXL's structure, values up to about 50."""
    vae = AutoencoderKL(**family_configs("sdxl")["vae"] | changes).eval()
    randomise(vae, 4, torch.float32)
    return vae


def tiny_taesd() -> AutoencoderTiny:
    """TAESD's structure, eight pixels per latent; pictures that use most of 0 … 255."""
    channels = {f"{half}_block_out_channels": (8, 8, 8, 8) for half in ("encoder", "decoder")}
    network = AutoencoderTiny(**channels, num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))
    randomise(network, 6, torch.float32)
    with torch.no_grad():
        network.decoder.layers[-1].bias.add_(0.5)
    return network


def run(vae: AutoencoderKL, component: str, inputs: list[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """One half's outputs, really computed in `dtype`, one row per input."""
    with torch.no_grad():
        cast = [values.to(dtype) for values in inputs]
        if component == "vae_decoder":
            return torch.cat([vae.decode(values, return_dict=False)[0] for values in cast])
        return torch.cat([vae.quant_conv(vae.encoder(values)) for values in cast])


def fit(vae: AutoencoderKL, component: str) -> NumericsRecord:
    """What the export does, over samples of 64 pixels."""
    return fit_vae_to_fp16(vae, component, vae_samples(vae, component, 64))[0]


def half(vae: AutoencoderKL) -> AutoencoderKL:
    """A copy in fp16, float32 islands excepted."""
    vae = copy.deepcopy(vae)
    to_fp16(vae)
    return vae


def inputs(component: str) -> list[Tensor]:
    """Small ones: torch's fp16 convolutions take 200 times as long as float32's on a CPU."""
    generator = torch.Generator().manual_seed(3)
    if component == "vae_decoder":
        return [torch.randn(1, 4, 6, 8, generator=generator) / 0.13025]
    return [torch.rand(1, 3, 48, 64, generator=generator) * 2 - 1]


def blow_up(vae: AutoencoderKL, component: str, levels: Sequence[int], inner: Callable[[], int]) -> AutoencoderKL:
    """A copy that computes the same with a residual stream 2^levels[i] times larger at its i-th resolution.

    `inner`: called for the exponent of each residual block between its norms, of attention's values, and of what
    stands between two convolutions at the network's ends.
    """
    vae = copy.deepcopy(vae)
    part = vae.decoder if component == "vae_decoder" else vae.encoder
    blocks = part.up_blocks if component == "vae_decoder" else part.down_blocks
    with torch.no_grad():
        ends = 2.0 ** inner()
        if component == "vae_decoder":
            grow(vae.post_quant_conv, ends, ends)
            grow(part.conv_in, 2.0 ** levels[0] / ends, 2.0 ** levels[0])
        else:
            grow(part.conv_in, 2.0 ** levels[0], 2.0 ** levels[0])
            grow(part.conv_out, ends, ends)
            grow(vae.quant_conv, 1 / ends, 1.0)
        for level, block in enumerate(blocks):
            following = levels[min(level + 1, len(levels) - 1)]
            grow_block(block, 2.0 ** levels[level], 2.0**following, inner)
        middle = levels[0] if component == "vae_decoder" else levels[-1]
        grow_block(part.mid_block, 2.0**middle, math.nan, inner)
        part.conv_norm_out.eps *= 4.0 ** levels[-1]
    return vae


def grow_block(block: Any, stream: float, following: float, inner: Callable[[], int]) -> None:
    """The residual blocks and the attention of one resolution, and the convolution that leads to the next."""
    for resnet in block.resnets:
        between = 2.0 ** inner()
        resnet.norm1.eps *= stream**2
        grow(resnet.conv1, between, between)
        resnet.norm2.eps *= between**2
        grow(resnet.conv2, stream, stream)
        if resnet.conv_shortcut is not None:
            grow(resnet.conv_shortcut, 1.0, stream)
    for attention in getattr(block, "attentions", None) or ():
        values = 2.0 ** inner()
        attention.group_norm.eps *= stream**2
        grow(attention.to_v, values, values)
        grow(attention.to_out[0], stream / values, stream)
    for sampler in getattr(block, "upsamplers", None) or getattr(block, "downsamplers", None) or ():
        grow(sampler.conv, following / stream, following)


def grow(layer: Any, weight: float, bias: float) -> None:
    """Multiply a layer's weight and bias."""
    layer.weight.mul_(weight)
    layer.bias.mul_(bias)


SPIKES = {"vae_decoder": "decoder.up_blocks.1.resnets.1", "vae_encoder": "encoder.down_blocks.2.resnets.0"}


def spike(vae: AutoencoderKL, component: str) -> AutoencoderKL:
    """A copy in which one channel of one residual block, behind its second norm, is 2^17 times too large."""
    vae = copy.deepcopy(vae)
    block: Any = vae.get_submodule(SPIKES[component])
    with torch.no_grad():
        block.norm2.weight[3] *= 2.0**17
        block.norm2.bias[3] *= 2.0**17
        block.conv2.weight[:, 3] *= 2.0**-17
    return vae


def waking(vae: AutoencoderKL) -> AutoencoderKL:
    """A copy whose decoder has a channel that sleeps over the samples, behind a SiLU, and wakes at three times them.

    In the first norm's first group two constants outweigh a channel of the latents, so that the norm keeps its scale;
    behind SiLU's flat side it is a small part of what it becomes when the latents are three times as large.
    """
    vae = copy.deepcopy(vae)
    block, conv_in = vae.decoder.mid_block.resnets[0], vae.decoder.conv_in
    samples = vae_samples(vae, "vae_decoder", 64)
    with torch.no_grad():
        conv_in.weight[:3] = 0.0
        conv_in.bias[:4] = torch.tensor([400.0, -400.0, 0.0, 0.0])
        values = [conv_in(vae.post_quant_conv(sample))[:, 3].abs().amax() for sample in samples]
        conv_in.weight[3] *= 4.5 / max(values)
        block.norm1.weight[3] = 400.0 / math.sqrt(2.0)
        block.norm1.bias[3] = -6.0
        block.conv1.weight[:, 3] *= 2.0**18
    return vae
