"""The names of a U-Net's layers in the original layout of Stable Diffusion, which many LoRAs use.

The original U-Net numbers its blocks consecutively: `input_blocks.4.1` is the first attention of the second resolution.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


@dataclass(frozen=True, slots=True)
class UNetBlocks:
    """What decides the original numbers of a U-Net's layers.

    `layers`: residual blocks of each resolution on the way down, without the downsampling. `attending`: the blocks on
    the way up that have attention.
    """

    layers: Sequence[int]
    attending: Collection[int]

    @classmethod
    def of(cls, layers: Sequence[int], names: Collection[str]) -> "UNetBlocks":
        """Tell the blocks that have attention by the names of a U-Net's layers."""
        found = (re.match(r"up_blocks\.(\d+)\.attentions\.", name) for name in names)
        return cls(layers, {int(match[1]) for match in found if match})

    def original_name(self, name: str) -> str:
        """Original name of a layer; one that the original layout lacks stays as it is."""
        if name in UNET_ENDS:
            return UNET_ENDS[name]
        match = re.fullmatch(r"(down|up|mid)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)(?:\.(.+))?", name)
        if match is None:
            return name
        path, block, kind, index = match[1], int(match[2] or 0), match[3], int(match[4])
        inner = RESNET.get(match[5], match[5]) if kind == "resnets" else match[5]
        if path == "mid":
            return f"middle_block.{2 * index if kind == 'resnets' else 1}.{inner}"
        before, own = self._count(path, block)
        if kind == "downsamplers":
            return f"input_blocks.{before + own + 1}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{before + own - 1}.{2 if block in self.attending else 1}.{inner}"
        number = before + index + (path == "down")
        return f"{'in' if path == 'down' else 'out'}put_blocks.{number}.{0 if kind == 'resnets' else 1}.{inner}"

    def _count(self, path: str, block: int) -> tuple[int, int]:
        """How many original blocks lie before a block, and how many it has: one per residual block.

        On the way down each downsampling is a block too, on the way up there is one more residual block.
        """
        counts = self.layers if path == "down" else [count + 1 for count in reversed(self.layers)]
        return sum(counts[:block]) + (block if path == "down" else 0), counts[block]
