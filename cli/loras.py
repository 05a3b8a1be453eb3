"""`--lora FILE:STRENGTH`: the LoRAs of one command, their strengths and the room they need."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import RequestError
from latentrt.runtime.lora.adapter import rank_of
from latentrt.runtime.lora.files import LoraFile
from latentrt.runtime.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class GivenLoras:
    """LoRAs by the names of their files, without suffix; None for a strength that was not given."""

    files: Mapping[str, LoraFile]
    strengths: Mapping[str, float | None]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "GivenLoras":
        """Parse `FILE` or `FILE:STRENGTH`, several of them.

        Raises:
            RequestError: a strength is not a number, or two files have one name.
        """
        files: dict[str, LoraFile] = {}
        strengths: dict[str, float | None] = {}
        for text in texts:
            one = LoraFile.parse(text)
            name = one.path.stem
            if name in files:
                raise RequestError(
                    f"--lora: {files[name].path} and {one.path} have one name, by which LoRAs are told apart. Name "
                    "each file once, or rename one"
                )
            files[name], strengths[name] = one, None if one.path == Path(text) else one.weight
        return cls(files, strengths)

    def setting(self, stored: Any) -> Any:
        """The setting `loras`: `stored`, if a picture's request is repeated, with the strengths that were given."""
        if not self.files:
            return stored
        kept = stored if isinstance(stored, Mapping) else {}
        return {
            name: kept.get(name, 1.0) if strength is None else strength for name, strength in self.strengths.items()
        }

    def load(self, bundle: Bundle, backend: str | None, device: str | None, build: str | None) -> Pipeline:
        """A pipeline in whose build these LoRAs have room, with all of them loaded."""
        rank = sum(map(rank_of, self.files.values()))
        pipeline = Pipeline.load(bundle, backend, device, build=build, lora_rank=rank)
        try:
            for name, one in self.files.items():
                pipeline.load_lora(one.path, name)
        except BaseException:
            pipeline.close()
            raise
        return pipeline
