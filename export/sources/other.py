"""One network of a checkpoint that comes from elsewhere: a folder, another checkpoint, or a file of its own."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from latentrt.export.sources.folder import Folder
from latentrt.export.sources.places import Place
from latentrt.export.sources.source import Classes, Config, Overlay, Source
from latentrt.export.sources.weight_file import WeightFile, filled_network, given_path, sha256


class NetworkFile(Source):
    """One file with the weights of one network; ignores the names of folders. Subclasses find out its config."""

    def __init__(self, path: Path):
        self.path = path
        self.file = WeightFile.open(path)
        self._config: Config

    @abstractmethod
    def _place(self, name: str) -> Place:
        """Where the file keeps one tensor of the network."""

    def config(self, folder: str, name: str = "config.json") -> Config:
        """Give the network's config."""
        return Config(self._config.file, self._config)

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """Give no files: such a network has no tokenizer."""
        return {}

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load the network."""
        return filled_network(self.file, kind, self._config, self._place, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield the config, and the file's hash."""
        yield self._config.to_bytes()
        yield sha256(self.path)

    def provenance(self) -> dict[str, Any]:
        """Name the file."""
        return {"checkpoint": self.path.name, "weights": "checkpoint"}


class OtherNetwork(Overlay):
    """A checkpoint whose network in the folder `replaced` comes from elsewhere.

    `path`: a folder in diffusers' format, a checkpoint that has the network, or a file, which `open_file` opens.
    `random_seed` and `variant` are those of `Folder`.
    """

    def __init__(
        self,
        base: Source,
        path: Path,
        replaced: str,
        open_file: Callable[[Path], Source],
        random_seed: int | None,
        variant: str | None,
    ):
        super().__init__(base)
        self.given, self.replaced = given_path(path), replaced
        place = self.given / replaced if (self.given / "model_index.json").is_file() else self.given
        self.folder = place.name
        self.other = Folder(place.parent, random_seed, variant) if place.is_dir() else open_file(place)

    @property
    def class_name(self) -> Any:
        """The new network's class, as its config states it."""
        return self.config(self.replaced).get("_class_name")

    def config(self, folder: str, name: str = "config.json") -> Config:
        """Read the new network's config, or the base's; the pipeline's names the new network's class."""
        if folder == self.replaced:
            return self.other.config(self.folder)
        config = self.base.config(folder, name)
        return Config(config.file, config | {self.replaced: ["diffusers", self.class_name]}) if folder == "" else config

    def check(self, classes: Classes) -> None:
        """Check the new network's weights, and those of the base's others."""
        self.base.check({folder: kind for folder, kind in classes.items() if folder != self.replaced})
        self.other.check({self.folder: classes[self.replaced]})

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load the new network, or another one of the base."""
        if folder == self.replaced:
            return self.other.network(self.folder, kind, dtype)
        return self.base.network(folder, kind, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield what identifies the base's other networks and the new one."""
        yield from self.base.identity([folder for folder in folders if folder != self.replaced])
        yield from self.other.identity([self.folder])

    def provenance(self) -> dict[str, Any]:
        """Say where the base's weights and the new network come from."""
        return self.base.provenance() | {self.replaced: f"{self.class_name} of {self.given.name}"}
