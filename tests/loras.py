"""LoRA files in every format in use, written from the layers they change, and what they come to, in plain arithmetic.

The names are written out by hand, so that a fault in the reader's names shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Change:
    """A layer of the tiny SDXL checkpoint, its weight's shape, and its kohya name in original blocks (U-Net only)."""

    folder: str
    layer: str
    shape: tuple[int, ...]
    original: str = ""

    @property
    def key(self) -> str:
        """Name of the weight in the network's own state dict."""
        return f"{self.layer}.weight"


ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
UP = "up_blocks.0.attentions.1.transformer_blocks.1"
LINEAR = (
    Change("unet", f"{ATTENTION}.attn1.to_q", (32, 32), "input_blocks_3_1_transformer_blocks_0_attn1_to_q"),
    Change("unet", f"{ATTENTION}.attn2.to_k", (32, 80), "input_blocks_3_1_transformer_blocks_0_attn2_to_k"),
    Change("unet", f"{UP}.attn1.to_out.0", (32, 32), "output_blocks_1_1_transformer_blocks_1_attn1_to_out_0"),
    Change("unet", f"{UP}.attn2.to_v", (32, 80), "output_blocks_1_1_transformer_blocks_1_attn2_to_v"),
)
LAYERS = (
    *LINEAR,
    Change("unet", f"{ATTENTION}.ff.net.0.proj", (256, 32), "input_blocks_3_1_transformer_blocks_0_ff_net_0_proj"),
    Change("unet", "mid_block.attentions.0.proj_in", (32, 32), "middle_block_1_proj_in"),
    Change("unet", "down_blocks.1.resnets.0.time_emb_proj", (32, 64), "input_blocks_3_0_emb_layers_1"),
    Change("unet", "time_embedding.linear_1", (64, 16), "time_embed_0"),
    Change("unet", "add_embedding.linear_2", (64, 64), "label_emb_0_2"),
)
CONVOLUTIONS = (
    Change("unet", "conv_in", (16, 4, 3, 3), "input_blocks_0_0"),
    Change("unet", "conv_out", (4, 16, 3, 3), "out_2"),
    Change("unet", "down_blocks.0.resnets.0.conv1", (16, 16, 3, 3), "input_blocks_1_0_in_layers_2"),
    Change("unet", "down_blocks.0.downsamplers.0.conv", (16, 16, 3, 3), "input_blocks_2_0_op"),
    Change("unet", "mid_block.resnets.1.conv2", (32, 32, 3, 3), "middle_block_2_out_layers_3"),
    Change("unet", "up_blocks.2.resnets.0.conv_shortcut", (16, 48, 1, 1), "output_blocks_4_0_skip_connection"),
    Change("unet", "up_blocks.0.upsamplers.0.conv", (32, 32, 3, 3), "output_blocks_1_2_conv"),
)
TEXTS = (
    Change("text_encoder", "encoder.layers.0.self_attn.q_proj", (32, 32)),
    Change("text_encoder", "encoder.layers.2.self_attn.out_proj", (32, 32)),
    Change("text_encoder", "encoder.layers.1.mlp.fc1", (64, 32)),
    Change("text_encoder_2", "text_model.encoder.layers.0.self_attn.v_proj", (48, 48)),
    Change("text_encoder_2", "text_model.encoder.layers.2.mlp.fc2", (48, 96)),
    Change("text_encoder_2", "text_projection", (40, 48)),
)

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def matrices(change: Change, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """(down, up): for a 3×3 convolution a 3×3 and a 1×1 one."""
    generator = torch.Generator().manual_seed(seed)
    out, inside, *kernel = change.shape
    down = torch.randn(rank, inside, *kernel, generator=generator) / 4
    return down, torch.randn(out, rank, *([1] * len(kernel)), generator=generator) / 4


def text_name(change: Change) -> str:
    """The layer of a text encoder as files name it, with `text_model`."""
    return change.layer if "text_" in change.layer else f"text_model.{change.layer}"


def write_lora(
    target: Path,
    form: str,
    changes: tuple[Change, ...],
    *,
    rank: int = 3,
    alpha: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
    **more: Tensor,
) -> Path:
    """Write a LoRA of these layers. `form`: kohya, kohya original, peft, diffusers or processor."""
    state: dict[str, Tensor] = dict(more)
    for number, change in enumerate(changes):
        down, up = (matrix.to(dtype) for matrix in matrices(change, rank, seed + number))
        names = NAMES[form](change)
        state |= {names[0]: down, names[1]: up}
        if alpha is not None:
            state[names[2]] = torch.tensor(alpha)
    save_file({key: value.contiguous() for key, value in state.items()}, target, metadata=dict(metadata or {"a": "b"}))
    return target


def expected(
    state: Mapping[str, Tensor], change: Change, number: int, *, rank: int = 3, scale: float = 1.0, seed: int = 0
) -> Tensor:
    """The layer's weight with the LoRA in it, in float64 and index by index."""
    down, up = (matrix.double() for matrix in matrices(change, rank, seed + number))
    product = torch.einsum("or,ri->oi", up.reshape(change.shape[0], rank), down.reshape(rank, -1))
    return state[change.key].double() + scale * product.reshape(change.shape)


def _kohya(change: Change, original: bool = False) -> tuple[str, str, str]:
    layer = change.layer if change.folder == "unet" else text_name(change)
    name = KOHYA[change.folder] + (change.original if original and change.original else layer.replace(".", "_"))
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


def _peft(change: Change) -> tuple[str, str, str]:
    layer = change.layer if change.folder == "unet" else text_name(change)
    name = f"{change.folder}.{layer}"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight", f"{name}.alpha"


def _diffusers(change: Change) -> tuple[str, str, str]:
    if change.folder == "unet":
        name = f"unet.{change.layer}.lora"
    else:
        name = f"{change.folder}.{text_name(change)}.lora_linear_layer"
    return f"{name}.down.weight", f"{name}.up.weight", f"{name}.alpha"


def _processor(change: Change) -> tuple[str, str, str]:
    """Before PEFT: attention's layers by their processor; in the text encoders under the U-Net's words."""
    if change.folder == "unet":
        block, _, layer = change.layer.removesuffix(".0").rpartition(".")
        name = f"unet.{block}.processor.{layer}_lora"
    else:
        block, _, layer = text_name(change).rpartition(".")
        name = f"{change.folder}.{block}.to_{layer.removesuffix('_proj')}_lora"
    return f"{name}.down.weight", f"{name}.up.weight", f"{name}.alpha"


NAMES = {
    "kohya": _kohya,
    "kohya original": lambda change: _kohya(change, original=True),
    "peft": _peft,
    "diffusers": _diffusers,
    "processor": _processor,
}
