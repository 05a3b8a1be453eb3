"""The LoRAs that are loaded into a build's slots.

Each rank of a loaded LoRA has one of the R columns for itself, wherever one is free: columns do not depend on each
other, so nothing ever has to move. Loading writes columns that no row uses, and so does not disturb drawings under way.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.backends import Backend, Buffer
from latentrt.runtime.backends.base import Block
from latentrt.runtime.bundle.lora_slots import LoraSlots, slot_layer, slot_ports
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import ComponentSpec, Port
from latentrt.runtime.bundle.unet_parts import component_of
from latentrt.runtime.errors import RequestError
from latentrt.runtime.lora.adapter import Matrices
from latentrt.runtime.lora.files import LoraFile
from latentrt.runtime.lora.fitting import FittedLora, columns_lie_first, columns_of, fit_lora, layer_shapes
from latentrt.runtime.lora.keys import layers_by_name
from latentrt.runtime.lora.mix import Mix, Strengths
from latentrt.runtime.lora.tensor_file import Shape


@dataclass(frozen=True, slots=True)
class LoadedLora:
    """A loaded LoRA: its file's name, its hashes (see `FittedLora`), its rank, and the networks that it changes."""

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
        self._backend, self._model, self._remedy = backend, model, remedy
        self._ports = {engine: ports for engine, spec in specs.items() if (ports := slot_ports(spec))}
        networks: dict[str, dict[str, Shape]] = {}
        for engine, ports in self._ports.items():
            networks.setdefault(component_of(engine), {}).update(layer_shapes(ports))
        self._known = {name: layers_by_name(name, shapes, model.unet_layers) for name, shapes in networks.items()}
        self._values: dict[tuple[str, str], NDArray[Any]] = {}
        self._blocks: dict[str, Block] = {}
        self._loaded: dict[str, LoadedLora] = {}

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
        fitted = fit_lora(files, self._known, self.slots, self._model)
        if name in self._loaded:
            if self._loaded[name].digest != fitted.digest:
                raise RequestError(f"LoRA {name!r}: another file has this name. Unload it, or name this one")
            return self._loaded[name]
        parts = {
            (engine, port.name): columns_of(port, fitted.rank, self._part(fitted, engine, port))
            for engine, ports in self._ports.items()
            for port in ports
        }
        columns = self._columns(path, fitted.rank, evict)
        networks = tuple(dict.fromkeys(network for network, _ in fitted.matrices))
        loaded = LoadedLora(name, path.name, fitted.digest, fitted.short_hash, fitted.rank, networks, columns)
        self._write(parts, columns)
        self._loaded[name] = loaded
        return loaded

    def _part(self, fitted: FittedLora, engine: str, port: Port) -> Matrices | None:
        return fitted.matrices.get((component_of(engine), slot_layer(port.name)))

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

    def _write(self, parts: Mapping[tuple[str, str], NDArray[Any]], columns: tuple[int, ...]) -> None:
        """Write a LoRA's part of every input into its columns, there and on the device."""
        for engine, ports in self._ports.items():
            changed: dict[str, NDArray[Any]] = {}
            for port in ports:
                values, new = self._array(engine, port), parts[engine, port.name]
                columns_first = values if columns_lie_first(port) else np.moveaxis(values, 1, 0)
                if not np.array_equal(columns_first[list(columns)], new):
                    columns_first[list(columns)] = new
                    changed[port.name] = values
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
                f"loras: {name!r} is not loaded; loaded are {loaded}. Load it: load_lora(path, {name!r}), or "
                "--lora FILE on the command line"
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
