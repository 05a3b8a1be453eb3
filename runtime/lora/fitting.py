"""A LoRA made to fit a build: its layers checked against those with slots, its matrices laid out for them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.backends.bfloat16 import RAW, from_bits, to_bits
from latentrt.runtime.bundle.lora_slots import DOWN, UP, LoraSlots, slot_layer
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import Port
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.lora.adapter import Lora, Matrices
from latentrt.runtime.lora.keys import Layer
from latentrt.runtime.lora.tensor_file import Shape

Known = Mapping[str, Mapping[str, Layer]]
"""Network -> its layers with slots, by the flattened names that files give to them."""


@dataclass(frozen=True, slots=True)
class FittedLora:
    """A LoRA's matrices by (network, layer), and its hashes.

    `digest`: of all that it is, options beside the file included. `short_hash`: of the tensors alone, twelve digits, by
    which AUTOMATIC1111 and model sites know it.
    """

    matrices: Mapping[tuple[str, str], Matrices]
    digest: str
    short_hash: str

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(len(one.down) for one in self.matrices.values())


def layer_shapes(ports: Sequence[Port]) -> dict[str, Shape]:
    """The layers that have slots, with the shapes of their weights, as a checkpoint has them."""
    shapes = {port.name: tuple(axis.offset for axis in port.axes) for port in ports}
    layers: dict[str, Shape] = {}
    for layer in dict.fromkeys(slot_layer(port.name) for port in ports):
        down, up = shapes[layer + DOWN], shapes[layer + UP]
        layers[layer] = (up[1], down[0]) if len(down) == 2 else (up[0], *down[1:])
    return layers


def fit_lora(files: Sequence[Path], known: Known, slots: LoraSlots, model: Model) -> FittedLora:
    """Read a LoRA's files, and check that it belongs to this model and that its layers have slots.

    Raises:
        CheckpointError: not a LoRA, made for another family, or for layers that have no slots here.
    """
    opened = [_open(file, known, slots, model) for file in files]
    matrices = {(network, one.layer): one for lora in opened for network, one in lora.matrices(known)}
    if not matrices:
        raise CheckpointError(
            f"{files[0]}: changes only layers of text encoders that are not read. It has no effect here"
        )
    whole = hashlib.sha256()
    for lora in opened:
        with lora.file.path.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
        whole.update(lora.scale.to_bytes())
    return FittedLora(matrices, whole.hexdigest(), _short_hash(files[0]))


def _open(file: Path, known: Known, slots: LoraSlots, model: Model) -> Lora:
    lora = Lora.open(file, {encoder.component: encoder.width for encoder in model.text_encoders})
    lora.check_family(model.context_width)
    run = {part: keys for part, keys in lora.parts.items() if not _never_runs(*part, known, model)}
    lora = replace(lora, parts=run)
    missing = [f"{network}.{layer}" for network, layer in run if layer not in known.get(network, {})]
    if slots.layers == "attention" and 0 < len(missing) < len(run):
        raise CheckpointError(
            f"{file}: {len(missing)} of its {len(run)} layers have no room in this build, which has some in attention "
            f"layers only; the first is {missing[0]}. Build with --lora-layers all, or add the LoRA to the weights: "
            "latentrt export CHECKPOINT -o BUNDLE --lora FILE:WEIGHT"
        )
    lora.check(known, model.context_width)
    return lora


def _never_runs(network: str, layer: str, known: Known, model: Model) -> bool:
    """Whether a layer lies behind the hidden state that is read of a text encoder, so that no engine has it."""
    encoder = next((one for one in model.text_encoders if one.component == network), None)
    match = re.match(r"encoder_layers_(\d+)_", layer)
    if encoder is None or match is None or layer in known.get(network, {}):
        return False
    return int(match[1]) < encoder.layers


def columns_of(port: Port, rank: int, one: Matrices | None) -> NDArray[Any]:
    """A LoRA's part of one input, zeros for none: its `rank` columns on the first axis, in the input's dtype.

    Raises:
        CheckpointError: a value is too large for the dtype.
    """
    is_down, shape = port.name.endswith(DOWN), port.shape({})
    others = shape[1:] if columns_lie_first(port) else (shape[0], *shape[2:])
    values = np.zeros((rank, *others), np.float32)
    if one is not None:
        part = one.down if is_down else np.float32(one.scale) * np.moveaxis(one.up, 1, 0)
        values[: len(part)] = part.reshape(len(part), *others)
    with np.errstate(over="ignore"):
        cast = to_bits(values) if port.numpy_dtype == RAW else values.astype(port.numpy_dtype)
    if not np.isfinite(from_bits(cast) if port.numpy_dtype == RAW else cast).all():
        raise CheckpointError(f"LoRA: {slot_layer(port.name)}: its values are too large for {port.dtype}")
    return cast


def columns_lie_first(port: Port) -> bool:
    """Whether the columns are an input's first axis, else its second.

    Products have the columns of A (in, R) on the last axis and those of B (R, out) on the first; convolutions, with
    A (R, in, height, width) and B (out, R, 1, 1), the other way round.
    """
    return port.name.endswith(DOWN) == (len(port.axes) == 4)


def _short_hash(file: Path) -> str:
    """SHA-256 of a safetensors file behind its header, shortened as AUTOMATIC1111 does."""
    with file.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]
