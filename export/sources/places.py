"""Places of the diffusers and transformers networks' tensors in the original layouts of Stable Diffusion.

The original U-Net numbers its blocks consecutively (`input_blocks.4.1` is the first attention of the second
resolution), the original autoencoder counts the decoder's resolutions from the output, and OpenCLIP keeps queries, keys
and values in one matrix. diffusers' own converters translate these names to its own and skip those that they do not
know; here every tensor of a network has exactly one place, so that missing and extra keys show, and LoRAs can be read
by either name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentrt.runtime.lora.original_names import UNetBlocks
from latentrt.runtime.lora.tensor_file import Shape

VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


@dataclass(frozen=True, slots=True)
class Place:
    """A key of a file, and which part of its tensor is meant.

    `third`: the first, second or last third of the rows, which hold queries, keys and values. `transposed`: the file
    keeps the transposed matrix.
    """

    key: str
    third: int | None = None
    transposed: bool = False

    def fits(self, stored: Shape, shape: Shape) -> bool:
        """Whether a tensor of shape `stored` holds one of `shape`; a 1×1 convolution may stand for a linear layer."""
        if self.transposed:
            stored = stored[::-1]
        if self.third is not None:
            stored = (stored[0] // 3, *stored[1:])
        return stored == shape or (stored[:2] == shape[:2] and set(stored[2:] + shape[2:]) <= {1})

    def read(self, stored: Tensor, shape: Shape) -> Tensor:
        """Extract the network's tensor, of shape `shape`, from the stored one."""
        if self.transposed:
            stored = stored.T
        if self.third is not None:
            stored = stored.chunk(3)[self.third]
        return stored.reshape(shape)


def unet_place(name: str, config: Mapping[str, Any]) -> Place:
    """Find where the original layout keeps one tensor of a U-Net."""
    module, _, parameter = name.rpartition(".")
    # Norms and linear layers inside a transformer keep their own names after the transformer's.
    attending = {number for number, kind in enumerate(config["up_block_types"]) if "CrossAttn" in kind}
    blocks = UNetBlocks(unet_layers(config), attending)
    return Place(f"{blocks.original_name(module)}.{parameter}")


def unet_layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Residual blocks of each resolution of a U-Net on its way down."""
    layers = config["layers_per_block"]
    return tuple(layers) if isinstance(layers, list | tuple) else (layers,) * len(config["down_block_types"])


def vae_place(name: str, config: Mapping[str, Any]) -> Place:
    """Find where the original layout keeps one tensor of an AutoencoderKL."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    last = len(config["block_out_channels"]) - 1
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(.+)", name):
        name = f"encoder.down.{match[1]}.{match[2]}"
    elif match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(.+)", name):
        name = f"decoder.up.{last - int(match[1])}.{match[2]}"
    elif match := re.fullmatch(r"(\w+)\.mid_block\.resnets\.(\d+)\.(.+)", name):
        name = f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
    elif match := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", name):
        name = f"{match[1]}.mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
    return Place(re.sub(r"(up|down)samplers\.0", r"\1sample", name).replace(".resnets.", ".block."))


def clip_place(name: str) -> Place:
    """Find where the original layout keeps one tensor of a CLIP text encoder: under transformers' name."""
    return Place(f"text_model.{name.removeprefix('text_model.')}")


def open_clip_place(name: str) -> Place:
    """Find where OpenCLIP keeps one tensor of a text encoder."""
    name = name.removeprefix("text_model.")
    if name == "text_projection.weight":
        return Place("text_projection", transposed=True)
    if name in OPEN_CLIP:
        return Place(OPEN_CLIP[name])
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return Place(name)
    layer, module, parameter = match.groups()
    if attention := re.fullmatch(r"self_attn\.([qkv])_proj", module):
        return Place(f"transformer.resblocks.{layer}.attn.in_proj_{parameter}", third="qkv".index(attention[1]))
    module = OPEN_CLIP_LAYER.get(module, module.replace("self_attn", "attn"))
    return Place(f"transformer.resblocks.{layer}.{module}.{parameter}")
