"""A tiny U-Net and a tiny text encoder whose values leave fp16's range in one place, and how they are run."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from checkpoints import randomise
from diffusers import UNet2DConditionModel
from families import SDXL_UNET, VOCAB_SIZE, text_config
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from latentrt.export.modules import TextEncoder, UNet
from latentrt.export.numerics.fp16 import fit_to_fp16
from latentrt.export.numerics.islands import frame, to_fp16
from latentrt.runtime.bundle.manifest import NumericsRecord
from latentrt.runtime.bundle.model import TextEncoder as Facts

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
RESNET = "up_blocks.0.resnets.1"
TRANSFORMER = "mid_block.attentions.0"
MLP = "text_model.encoder.layers.1.mlp"
LARGE = 2.0**17

SMALL_UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 1,
    "attention_head_dim": [2, 4],
}
"""Two levels in place of three: traced in half the time."""


def small_unet(**changes: Any) -> UNet:
    """A healthy U-Net with SDXL's ports."""
    network = UNet2DConditionModel(**SDXL_UNET | SMALL_UNET | changes).eval()
    randomise(network, 2, torch.float32)
    return UNet(network).eval()


def small_text_encoder() -> TextEncoder:
    """A healthy text encoder with a projection."""
    config = text_config(48, heads=3, activation="gelu", pad=0, projection_dim=40)
    network = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    randomise(network, 1, torch.float32)
    facts = Facts(component="text_encoder_2", tokenizer="", width=48, pooled=40, layers=3, skipped=1, final_norm=False)
    return TextEncoder(network, facts).eval()


def inputs(module: Any) -> tuple[Tensor, ...]:
    """Four texts, or four rows at different timesteps."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if isinstance(module, TextEncoder):
        return torch.randint(0, VOCAB_SIZE, (4, 77), generator=generator), torch.zeros(4, dtype=torch.int64)
    times = torch.tensor([999.0, 600.0, 200.0, 1.0])
    return draw(4, 4, 8, 10), times, draw(4, 77, SDXL_UNET["cross_attention_dim"]), draw(4, 40), 100 * draw(4, 6).abs()


def fit(module: Any) -> NumericsRecord:
    """What the export does: from then on the module computes in fp16."""
    record, islands = fit_to_fp16("network", module.network, lambda sample: module(*sample), [inputs(module)])
    to_fp16(module)
    frame(module, islands, [torch.float16] * 2)
    return record


def run(module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The first output; the ports that are float32 in every precision stay so."""
    cast = [
        value.to(dtype) if value.is_floating_point() and index not in (1, 4) else value
        for index, value in enumerate(inputs(module))
    ]
    with torch.no_grad():
        output = module(*cast)
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def plain_fp16(module: Any) -> Tensor:
    """The first output of a copy that is cast as it is."""
    return run(torch.nn.Module.to(copy.deepcopy(module), torch.float16), torch.float16)


def grow(layer: Any, factor: float) -> None:
    """Multiply a layer's weight and bias."""
    layer.weight.mul_(factor)
    if layer.bias is not None:
        layer.bias.mul_(factor)


def large_logits(network: Any) -> None:
    """A constant in every key of one attention: it adds to all logits of a row alike, and softmax takes it away."""
    block = network.get_submodule(BLOCK)
    block.norm1.weight[0], block.norm1.bias[0] = 0.0, 1.0
    block.attn1.to_k.weight[:, 0] = 12000.0


def large_residual_branch(network: Any) -> None:
    """One residual block, between its norms."""
    block = network.get_submodule(RESNET)
    grow(block.conv1, LARGE)
    grow(block.time_emb_proj, LARGE)
    block.norm2.eps *= LARGE**2


def large_feed_forward(network: Any) -> None:
    """The gated product inside one feed-forward branch."""
    branch = network.get_submodule(f"{BLOCK}.ff.net")
    half = branch[0].proj.weight.shape[0] // 2
    branch[0].proj.weight[:half].mul_(LARGE)
    branch[0].proj.bias[:half].mul_(LARGE)
    branch[2].weight.mul_(1 / LARGE)


def large_transformer_stream(network: Any) -> None:
    """The residual stream of one transformer, from its first layer to its last."""
    transformer = network.get_submodule(TRANSFORMER)
    grow(transformer.proj_in, LARGE)
    for block in transformer.transformer_blocks:
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
            grow(layer, 2.0**8)
        for norm in (block.norm1, block.norm2, block.norm3):
            norm.eps *= LARGE**2
    transformer.proj_out.weight.mul_(1 / LARGE)


def large_stream(network: Any) -> None:
    """The residual stream of the whole U-Net, in one channel."""
    network.conv_in.bias[3] += 1e6
    for name, layer in network.named_modules():
        if name.endswith(("conv_shortcut", "samplers.0.conv")):
            layer.weight.mul_(0.5)


def large_text_branch(network: Any) -> None:
    """One channel inside one layer's feed-forward branch."""
    branch = network.get_submodule(MLP)
    branch.fc1.weight[3] *= LARGE
    branch.fc2.weight[:, 3] /= LARGE


def large_text_stream(network: Any) -> None:
    """One channel of the residual stream, within fp16's range but without headroom."""
    network.text_model.embeddings.position_embedding.weight[:, 3] += 30000.0


def changed(module: Any, change: Callable[[Any], None]) -> Any:
    """A copy of a module with a changed network."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        change(module.network)
    return module
