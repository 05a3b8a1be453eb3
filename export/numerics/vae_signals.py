"""The signals of a VAE that may be scaled by a power of two without changing what it computes.

A signal is a set of tensors that share one scale, because they are added to each other or pass through operators that
keep a scale (addition, upsampling, padding, attention's averages). It has the name of the module that begins it:

    a stretch of the residual stream     conv_in, a shortcut, an up- or downsampling convolution
    a residual block between its norms   conv1
    attention's values, queries, keys    to_v, to_q, to_k
    a tensor between linear layers       post_quant_conv; the encoder's conv_out

A projection may read one signal and write another, whatever their scales; a norm removes the scale of what it reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import diffusers
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from latentrt.runtime.errors import CheckpointError

UNSCALED = ""
"""The one signal whose scale is fixed: the network's input and output, and everything behind a norm."""

REMEDY = "Export with --vae-precision fp32"
"""The last sentence of every error about a VAE that fp16 cannot hold."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A convolution or linear layer, the signal that it reads and the one that it writes."""

    module: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Norm:
    """A group norm and the signal that it reads."""

    module: str
    source: str


@dataclass
class Signals:
    """Every projection and norm of one half of a VAE.

    `writers`: signal -> modules whose outputs are values of it.
    """

    network: nn.Module
    projections: list[Projection] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    attentions: list[str] = field(default_factory=list)
    writers: dict[str, list[str]] = field(default_factory=dict)

    def project(self, module: str, source: str, target: str | None = None) -> str:
        """Add a projection, which begins a new signal unless `target` names one; returns the signal that it writes."""
        target = module if target is None else target
        self.projections.append(Projection(module, source, target))
        self.writers.setdefault(target, []).append(module)
        return target

    def normalise(self, module: str, source: str) -> None:
        """Add a norm; its output cannot be scaled."""
        self.norms.append(Norm(module, source))

    def residual_block(self, name: str, stream: str) -> str:
        """Add norm1, conv1, norm2 and conv2, which end in the stream or in a shortcut's projection of it."""
        block: Any = self.network.get_submodule(name)
        if not isinstance(block, ResnetBlock2D) or block.time_emb_proj is not None:
            raise _unknown(name, block)
        self.normalise(f"{name}.norm1", stream)
        inner = self.project(f"{name}.conv1", UNSCALED)
        self.normalise(f"{name}.norm2", inner)
        if block.conv_shortcut is not None:
            stream = self.project(f"{name}.conv_shortcut", stream)
        self.project(f"{name}.conv2", UNSCALED, stream)
        self.writers[stream].append(name)
        return stream

    def attention(self, name: str, stream: str) -> None:
        """Add a norm, queries, keys and values, and the output projection, which ends in the stream."""
        block: Any = self.network.get_submodule(name)
        if not isinstance(block, Attention) or block.group_norm is None or block.spatial_norm is not None:
            raise _unknown(name, block)
        self.normalise(f"{name}.group_norm", stream)
        for part in "qkv":
            self.project(f"{name}.to_{part}", UNSCALED)
        self.project(f"{name}.to_out.0", f"{name}.to_v", stream)
        self.writers[stream].append(name)
        self.attentions.append(name)

    def resample(self, name: str, stream: str) -> str:
        """Add an up- or downsampling, with or without a convolution."""
        block: Any = self.network.get_submodule(name)
        if not isinstance(block, Upsample2D | Downsample2D) or block.norm is not None:
            raise _unknown(name, block)
        return self.project(f"{name}.conv", stream) if block.use_conv else stream

    def stage(self, name: str, stream: str) -> str:
        """Add the residual blocks, attentions and resamplings of one block, in the order in which they run."""
        block: Any = self.network.get_submodule(name)
        # In the middle block an attention comes before a residual block, elsewhere after it.
        shift = 1 if name.endswith("mid_block") else 0
        attentions = [None] * shift + list(getattr(block, "attentions", ()))
        for index, attention in zip_longest(range(len(block.resnets)), attentions):
            if shift and attention is not None:
                self.attention(f"{name}.attentions.{index - shift}", stream)
            stream = self.residual_block(f"{name}.resnets.{index}", stream)
            if not shift and attention is not None:
                self.attention(f"{name}.attentions.{index}", stream)
        for kind in ("downsamplers", "upsamplers"):
            for index in range(len(getattr(block, kind, None) or ())):
                stream = self.resample(f"{name}.{kind}.{index}", stream)
        return stream


def _unknown(name: str, block: nn.Module) -> CheckpointError:
    return CheckpointError(
        f"{name}: a {type(block).__name__} of a kind that latentrt cannot scale into fp16's range. {REMEDY}"
    )


def vae_signals(network: Any, component: str) -> Signals:
    """Find the signals of a VAE's decoder or encoder.

    An AutoencoderTiny has no norms, so nothing could undo a scale: all of it is one unscaled signal.

    Raises:
        CheckpointError: it holds a block of a kind that Stable Diffusion's VAEs do not have.
    """
    signals = Signals(network)
    half = "decoder" if component == "vae_decoder" else "encoder"
    if isinstance(network, diffusers.AutoencoderTiny):
        for name, module in network.get_submodule(half).named_modules(prefix=half):
            if isinstance(module, nn.Conv2d):
                signals.project(name, UNSCALED, UNSCALED)
        return signals
    stream = UNSCALED
    if half == "decoder" and network.post_quant_conv is not None:
        stream = signals.project("post_quant_conv", stream)
    stream = signals.project(f"{half}.conv_in", stream)
    for block in _blocks(network, half):
        stream = signals.stage(block, stream)
    signals.normalise(f"{half}.conv_norm_out", stream)
    if half == "encoder" and network.quant_conv is not None:
        signals.project("quant_conv", signals.project("encoder.conv_out", UNSCALED), UNSCALED)
    else:
        signals.project(f"{half}.conv_out", UNSCALED, UNSCALED)
    return signals


def _blocks(network: Any, half: str) -> Iterator[str]:
    if half == "encoder":
        yield from (f"encoder.down_blocks.{index}" for index in range(len(network.encoder.down_blocks)))
        yield "encoder.mid_block"
    else:
        yield "decoder.mid_block"
        yield from (f"decoder.up_blocks.{index}" for index in range(len(network.decoder.up_blocks)))
