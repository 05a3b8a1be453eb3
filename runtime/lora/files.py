"""Where a LoRA's file is: what `--lora` names, a file or a folder as `save_pretrained` writes it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.lora.tensor_file import PICKLES

NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call a LoRA's file in its folder."""

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
"""Folders of the networks that a LoRA can change."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA's file or folder, and the weight with which it is added."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "LoraFile":
        """Parse `FILE` or `FILE:WEIGHT`.

        Raises:
            RequestError: the weight is not a finite number.
        """
        head, colon, tail = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls(Path(text))
        try:
            weight = float(tail)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise RequestError(f"--lora {text}: weight {tail!r} is not a number. Write FILE:WEIGHT, such as {head}:0.8")
        return cls(Path(head), weight)

    def files(self) -> "Iterator[LoraFile]":
        """Find the files: itself; in a folder its only LoRA, or one per network (`unet/`, `text_encoder/`).

        Raises:
            CheckpointError: the folder holds none, or several to choose from.
        """
        if not self.path.is_dir():
            yield self
            return
        found = [self.path / name for name in NAMES if (self.path / name).is_file()]
        if not found:
            folders = (self.path / folder for folder in NETWORKS)
            found = [folder / NAMES[0] for folder in folders if (folder / NAMES[0]).is_file()]
        elif len(found) > 1:
            raise CheckpointError(f"--lora {self.path}: holds {' and '.join(NAMES)}. Name one of them")
        yield from (replace(self, path=file) for file in (found or [self._only_file()]))

    def _only_file(self) -> Path:
        files = sorted(file for file in self.path.iterdir() if file.suffix.lower() in (".safetensors", *PICKLES))
        if len(files) == 1:
            return files[0]
        below = sorted(file.parent.name for file in self.path.glob(f"*/{NAMES[0]}"))
        names = ", ".join([*(file.name for file in files), *below])
        found = f"holds {names}. Name one of them" if names else "holds no LoRA. Name its .safetensors file"
        raise CheckpointError(f"--lora {self.path}: {found}")
