"""The LoRAs that are loaded into a build's slots.

Each rank of a loaded LoRA has one of the R columns for itself, wherever one is free: columns do not depend on each
other, so nothing ever has to move. Loading writes columns that no row uses, and so does not disturb drawings under way.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.backends import Backend, Buffer
from latentrt.runtime.backends.base import Block
from latentrt.runtime.backends.bfloat16 import RAW, from_bits, to_bits
from latentrt.runtime.bundle.lora_slots import DOWN, UP, LoraSlots, slot_layer, slot_ports
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import ComponentSpec, Port
from latentrt.runtime.bundle.unet_parts import component_of
from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.lora.adapter import Lora, Matrices
from latentrt.runtime.lora.files import LoraFile
from latentrt.runtime.lora.keys import layers_by_name
from latentrt.runtime.lora.mix import Mix, Strengths


@dataclass(frozen=True, slots=True)
class LoadedLora:
    """A loaded LoRA: its file's name, hashes, its rank, and the networks that it changes.

    `digest`: of all that it is, options beside the file included. `short_hash`: of the tensors alone, twelve digits, by
    which AUTOMATIC1111 and model sites know it.
    """

    name: str
    file: str
    digest: str
    short_hash: str
    rank: int
    networks: tuple[str, ...]
    columns: tuple[int, ...]


class LoraBank:
    """The slots of one pipeline's engines, and the LoRAs in them.

    `specs`: every engine's. `slots`: None for a build without room. `remedy`: the command that would build with room.
    """

    def __init__(
        self,
        backend: Backend,
        specs: Mapping[str, ComponentSpec],
        slots: LoraSlots | None,
        model: Model,
        remedy: str,
    ):
        self.slots = slots
        self.version = 0
        """Raised whenever columns may get another meaning, so that strengths computed before are no longer valid."""
        self._backend, self._model, self._remedy = backend, model, remedy
        self._ports = {engine: ports for engine, spec in specs.items() if (ports := slot_ports(spec))}
        self._known = {folder: layers_by_name(folder, shapes, model.unet_layers) for folder, shapes in self._shapes()}
        self._values: dict[tuple[str, str], NDArray[Any]] = {}
        self._blocks: dict[str, Block] = {}
        self._loaded: dict[str, LoadedLora] = {}

    def _shapes(self) -> Iterable[tuple[str, dict[str, tuple[int, ...]]]]:
        """Each network's layers with the shapes of their weights, as a checkpoint has them."""
        networks: dict[str, dict[str, tuple[int, ...]]] = {}
        for engine, ports in self._ports.items():
            by_name = {port.name: [axis.offset for axis in port.axes] for port in ports}
            for layer in {slot_layer(port.name): None for port in ports}:
                down, up = by_name[layer + DOWN], by_name[layer + UP]
                shape = (up[1], down[0]) if len(down) == 2 else (up[0], *down[1:])
                networks.setdefault(component_of(engine), {})[layer] = shape
        return networks.items()

    @property
    def loaded(self) -> Mapping[str, LoadedLora]:
        """The loaded LoRAs by name, the least recently used one first."""
        return dict(self._loaded)

    def load(self, path: Path, name: str | None, evict: bool) -> LoadedLora:
        """Load a LoRA's file or folder under a name, by default its file's. Loading the same again changes nothing.

        `evict`: where the room is too small, drop the LoRAs that were not used for longest.

        Raises:
            RequestError: the build has no room, or not enough, or the name is taken by another LoRA.
            CheckpointError: not a LoRA, made for another family, or for layers that have no slots here.
        """
        if self.slots is None:
            raise RequestError(f"{path}: this build has no room for LoRAs. Build it with some: {self._remedy}")
        files = [file.path for file in LoraFile(path).files()]
        name = files[0].stem if name is None and len(files) == 1 else name or path.name
        opened = [self._open(file) for file in files]
        digest = _digest(opened)
        if name in self._loaded:
            if self._loaded[name].digest != digest:
                raise RequestError(f"LoRA {name!r}: another file has this name. Unload it, or name this one")
            return self._loaded[name]
        matrices = [
            (network, one)
            for lora in opened
            for network in dict.fromkeys(network for network, _ in lora.parts)
            for one in lora.matrices(network, self._known[network])
        ]
        rank = max(len(one.down) for _, one in matrices)
        columns = self._columns(path, rank, evict)
        networks = tuple(dict.fromkeys(network for network, _ in matrices))
        loaded = LoadedLora(name, path.name, digest, _short_hash(files[0]), rank, networks, columns)
        self._write({f"{network}/{one.layer}": one for network, one in matrices}, columns)
        self._loaded[name] = loaded
        return loaded

    def _open(self, file: Path) -> Lora:
        """Open one file, and check that its layers are those of these networks and have slots."""
        lora = Lora.open(file, {encoder.component: encoder.width for encoder in self._model.text_encoders})
        unknown = sorted(f"{network}.{layer}" for network, layer in lora.parts if network not in self._known)
        if unknown:
            raise CheckpointError(f"{file}: {unknown[0]}: this model has no such network")
        lora = replace(lora, parts={part: keys for part, keys in lora.parts.items() if not self._never_runs(*part)})
        assert self.slots is not None
        if self.slots.layers == "attention":
            self._check_attention(lora)
        lora.check(self._known, self._model.context_width)
        return lora

    def _never_runs(self, network: str, layer: str) -> bool:
        """Whether a layer lies behind the hidden state that is read of a text encoder, so that no engine has it."""
        encoder = next((one for one in self._model.text_encoders if one.component == network), None)
        match = re.match(r"encoder_layers_(\d+)_", layer)
        if encoder is None or match is None or layer in self._known.get(network, {}):
            return False
        return int(match[1]) < encoder.layers

    def _check_attention(self, lora: Lora) -> None:
        """Refuse a LoRA that also changes layers outside the transformer blocks, if it belongs to this model at all."""
        missing = [f"{network}.{layer}" for network, layer in lora.parts if layer not in self._known[network]]
        if missing and len(missing) < len(lora.parts):
            raise CheckpointError(
                f"{lora.file.path}: {len(missing)} of its {len(lora.parts)} layers have no room in this build, "
                f"which has some in attention layers only; the first is {missing[0]}. Build with --lora-layers all, "
                "or add the LoRA to the weights: latentrt export CHECKPOINT -o BUNDLE --lora FILE:WEIGHT"
            )

    def _columns(self, path: Path, rank: int, evict: bool) -> tuple[int, ...]:
        """The columns for a LoRA of this rank, with others dropped for it where that was asked for."""
        assert self.slots is not None
        if rank > self.slots.rank:
            raise RequestError(
                f"{path}: its rank is {rank}, this build has room for {self.slots.rank} in all. Build with "
                f"--lora-rank {rank} or more"
            )
        while len(free := self._free()) < rank and evict:
            self.unload(next(iter(self._loaded)))
        if len(free) < rank:
            used = ", ".join(f"{lora.name} ({lora.rank})" for lora in self._loaded.values())
            raise RequestError(
                f"{path}: its rank is {rank}, but only {len(free)} of {self.slots.rank} are free; loaded are {used}. "
                f"Unload one, load with evict=True, or build with a larger --lora-rank"
            )
        return tuple(free[:rank])

    def _free(self) -> list[int]:
        assert self.slots is not None
        used = {column for lora in self._loaded.values() for column in lora.columns}
        return [column for column in range(self.slots.rank) if column not in used]

    def unload(self, name: str) -> None:
        """Free a LoRA's room.

        Raises:
            RequestError: none of this name is loaded.
        """
        if name not in self._loaded:
            raise RequestError(f"LoRA {name!r}: not loaded; loaded are {', '.join(self._loaded) or 'none'}")
        del self._loaded[name]
        self.version += 1

    def _write(self, matrices: Mapping[str, Matrices], columns: tuple[int, ...]) -> None:
        """Write a LoRA's matrices into its columns of every layer; zeros where it does not change the layer."""
        filled = {}
        for engine, ports in self._ports.items():
            for port in ports:
                one = matrices.get(f"{component_of(engine)}/{slot_layer(port.name)}")
                filled[engine, port.name] = fill_columns(self._array(engine, port), port, columns, one)
        for engine, ports in self._ports.items():
            changed = {}
            for port in ports:
                values = filled[engine, port.name]
                if not np.array_equal(values, self._array(engine, port)):
                    changed[port.name] = self._values[engine, port.name] = values
            if changed and engine in self._blocks:
                self._blocks[engine].write(changed)

    def _array(self, engine: str, port: Port) -> NDArray[Any]:
        """The host's copy of one input."""
        key = engine, port.name
        if key not in self._values:
            self._values[key] = np.zeros(port.shape({}), port.numpy_dtype)
        return self._values[key]

    def use(self, mixes: Iterable[Mix]) -> None:
        """Note that LoRAs are used, by their names.

        Raises:
            RequestError: one is not loaded.
        """
        for use in dict.fromkeys(use for mix in mixes for use in mix):
            found = self._lora(use.name)
            del self._loaded[use.name]
            self._loaded[use.name] = found  # last: used most recently

    def strengths(self, mix: Mix, network: str) -> Strengths:
        """The strengths of a mix in one network, by the LoRAs' digests, which mean the same in any pipeline.

        Raises:
            RequestError: a LoRA is not loaded.
        """
        pairs = [(self._lora(use.name).digest, use.weight(network)) for use in mix]
        return tuple(pair for pair in pairs if pair[1])

    def _lora(self, name: str) -> LoadedLora:
        """A loaded LoRA by its name."""
        if self.slots is None:
            raise RequestError(f"loras: this build has no room for LoRAs. Build it with some: {self._remedy}")
        if name not in self._loaded:
            loaded = ", ".join(self._loaded) or "none"
            raise RequestError(
                f"loras: {name!r} is not loaded; loaded are {loaded}. Load it: load_lora(path, {name!r})"
            )
        return self._loaded[name]

    def row(self, strengths: Strengths) -> Float32s | None:
        """One row (1, R) of strengths for the columns; None for a build without room.

        Raises:
            RequestError: a LoRA is not loaded here.
        """
        columns = {lora.digest: lora.columns for lora in self._loaded.values()}
        if missing := [digest for digest, _ in strengths if digest not in columns]:
            raise RequestError(
                f"this drawing uses a LoRA (SHA-256 {missing[0][:12]}…) that is not loaded in this pipeline, or no "
                "longer. Load it again before going on with the drawing"
            )
        if self.slots is None:
            return None
        row = np.zeros((1, self.slots.rank), np.float32)
        for digest, strength in strengths:
            row[0, list(columns[digest])] += np.float32(strength)
        return row

    def buffers(self, engine: str) -> Mapping[str, Buffer]:
        """The inputs of an engine that hold what is loaded, for all its bindings; empty for one without slots."""
        ports = self._ports.get(engine, ())
        if ports and engine not in self._blocks:
            self._blocks[engine] = self._backend.block(ports, {})
            self._blocks[engine].write({port.name: self._array(engine, port) for port in ports})
        return self._blocks[engine].buffers if ports else {}

    def close(self) -> None:
        """Let go of the buffers."""
        self._blocks.clear()


def fill_columns(values: NDArray[Any], port: Port, columns: tuple[int, ...], one: Matrices | None) -> NDArray[Any]:
    """One input with a LoRA's part, or zeros, in these columns.

    Products have the columns of A (in, R) on the last axis and those of B (R, out) on the first; convolutions the
    other way round.

    Raises:
        CheckpointError: a value is too large for the input's dtype.
    """
    is_down = port.name.endswith(DOWN)
    first = is_down == (values.ndim == 4)
    columns_first = np.zeros_like(values if first else np.moveaxis(values, 1, 0), np.float32)[list(columns)]
    if one is not None:
        part = one.down if is_down else np.float32(one.scale) * np.moveaxis(one.up, 1, 0)
        columns_first[: len(part)] = part.reshape(len(part), *columns_first.shape[1:])
    with np.errstate(over="ignore"):
        cast = to_bits(columns_first) if values.dtype == RAW else columns_first.astype(values.dtype)
    if not np.isfinite(from_bits(cast) if values.dtype == RAW else cast).all():
        raise CheckpointError(f"LoRA: {slot_layer(port.name)}: its values are too large for {port.dtype}")
    filled = values.copy()
    (filled if first else np.moveaxis(filled, 1, 0))[list(columns)] = cast
    return filled


def _short_hash(file: Path) -> str:
    """SHA-256 of a safetensors file behind its header, shortened as AUTOMATIC1111 does."""
    with file.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def _digest(loras: Sequence[Lora]) -> str:
    """A hash of all that a LoRA is: its files' bytes, and the options beside them."""
    whole = hashlib.sha256()
    for lora in loras:
        with lora.file.path.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
        whole.update(lora.scale.to_bytes())
    return whole.hexdigest()
