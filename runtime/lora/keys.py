"""The names that LoRA files give to a network's layers, and the networks' own names for them.

All common formats name a layer by its path, with dots or underscores, in diffusers' names or the original ones:

    unet.down_blocks.1.attentions.0.proj_in.lora_A.weight                   diffusers, PEFT
    unet.down_blocks.1.attentions.0...attn1.processor.to_q_lora.down.weight diffusers before PEFT
    text_encoder.text_model.encoder.layers.0...q_proj.lora_linear_layer.up.weight
    lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight           kohya, diffusers' blocks
    lora_unet_input_blocks_4_1_proj_in.lora_down.weight                     kohya, original blocks
    lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha

So a key is a network, a flattened path and a part: `lora_unet_`, `input_blocks_4_1_proj_in`, `down`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from latentrt.runtime.lora.original_names import UNetBlocks
from latentrt.runtime.lora.tensor_file import Shape, list_keys

Part = Literal["down", "up", "alpha"]

NETWORKS = {
    "lora_unet_": "unet",
    "unet.": "unet",
    "diffusion_model.": "unet",
    "base_model.model.text_model.": "",
    "base_model.model.encoder.layers.": "",
    "base_model.model.text_projection.": "text_encoder_2",
    "base_model.model.": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "text_encoder.": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "text_encoder_2.": "text_encoder_2",
    "clip_l.": "text_encoder",
    "clip_h.": "text_encoder",
    "clip_g.": "text_encoder_2",
    "text_encoders.clip_l.": "text_encoder",
    "text_encoders.clip_h.": "text_encoder",
    "text_encoders.clip_g.": "text_encoder_2",
}
"""Beginning of a key -> folder of its network. A key with none of them is the U-Net's, as diffusers once wrote.

An empty folder is that of some text encoder: PEFT's files of one network do not say which. OneTrainer and ComfyUI name
the text encoders `clip_l`, `clip_h` and `clip_g`.
"""

PARTS = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.default)?\.weight"
    r"|(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<kohya>down|up)\.weight"
    r"|(?:_lora|\.lora|\.lora_linear_layer)?\.(?P<alpha>alpha))"
)

OTHER_KINDS = {
    r"\.hada_w\d": "LoHa",
    r"\.lokr_w\d": "LoKr",
    r"\.dora_scale$|\.lora_magnitude_vector": "DoRA",
    r"\.lora_mid\.": "a Tucker-decomposed LoRA",
    r"\.oft_": "OFT",
    r"\.on_input$": "(IA)³",
    r"\.lora_B\.bias$": "a LoRA with biases",
    r"\.diff(_b)?$": "a full difference of weights",
}
"""Pattern in a key -> the kind of adapter that has such keys; none is the plain product of two matrices."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, taken apart; `layer` is a flattened path."""

    folder: str
    layer: str
    part: Part


def read_key(key: str) -> Key | None:
    """Take a key apart; None for one that is not a LoRA's."""
    match = PARTS.fullmatch(key)
    if match is None:
        return None
    prefix = next((prefix for prefix in NETWORKS if key.startswith(prefix)), "")
    layer = match["layer"].removeprefix("base_model.model." if prefix.startswith("base_model.") else prefix)
    layer = layer.replace(".processor", "")
    return Key(NETWORKS.get(prefix, "unet"), flatten(layer), _part(match))


def _part(match: re.Match[str]) -> Part:
    if match["alpha"]:
        return "alpha"
    return "down" if match["peft"] == "A" or match["kohya"] == "down" else "up"


def flatten(name: str) -> str:
    """Write a path as kohya does. `text_model` goes, for transformers names CLIP's layers with it and without it."""
    return name.replace(".", "_").removeprefix("transformer_text_model_").removeprefix("text_model_")


def other_kind(keys: list[str]) -> str | None:
    """Name the kind of an adapter that is not a plain LoRA; None for one that may be."""
    return next((kind for part, kind in OTHER_KINDS.items() if any(re.search(part, key) for key in keys)), None)


def describe_unread(keys: list[str]) -> str:
    """Say what keys of a LoRA's file are that belong to none, and what to do."""
    if all(key.startswith("bundle_emb.") for key in keys):
        words = sorted({key.split(".")[1] for key in keys if key.count(".")})
        return (
            f"also holds the learned words {list_keys(words)} (textual inversion, {keys[0]}), which latentrt does not "
            "add. Save the LoRA without its embeddings, or add the words to the checkpoint's tokenizer and text "
            "encoders first"
        )
    return f"{len(keys)} keys are no LoRA's: {list_keys(keys)}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer of a network: its name and the shape of its weight."""

    name: str
    shape: Shape


def layers_by_name(folder: str, shapes: Mapping[str, Shape], unet_layers: Sequence[int]) -> dict[str, Layer]:
    """Map every flattened name that files give to a layer which a LoRA can change, to that layer.

    `shapes`: the layers of the network in `folder`, and the shapes of their weights. `unet_layers`: see `Model`.
    """
    blocks = UNetBlocks.of(unet_layers, shapes)
    by_name: dict[str, Layer] = {}
    for name, shape in shapes.items():
        names = {name, name.removesuffix(".to_out.0") + ".to_out" if name.endswith(".to_out.0") else name}
        if folder == "unet":
            names.add(blocks.original_name(name))
        else:
            names |= {re.sub(r"\.([qkv])_proj$", r".to_\1", name), re.sub(r"\.out_proj$", ".to_out", name)}
        by_name |= dict.fromkeys(map(flatten, names), Layer(name, shape))
    return by_name
