"""How strongly a LoRA acts, where its tensors do not say: diffusers' header, and PEFT's `adapter_config.json`.

PEFT scales a layer by alpha / rank, or with `use_rslora` by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732).
`alpha_pattern` and `rank_pattern` give layers their own: each pattern is a regular expression for the end of a path.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.lora.tensor_file import TensorFile

HEADER = "lora_adapter_metadata"
"""Header field in which diffusers keeps ranks and alphas: its files hold no alphas beside the matrices."""

ADAPTER_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
"""Beginning of the keys of a file that PEFT saved; their scale stands in `ADAPTER_CONFIG`, beside it, alone."""

MOVED_BASES = ("pissa", "olora", "corda", "loftq")
"""Beginnings of PEFT's `init_lora_weights` that also change the base model's weights, which the adapter lacks."""


@dataclass(frozen=True, slots=True)
class LoraScale:
    """What stands outside a LoRA's tensors: for each network ("" for all of them) PEFT's options."""

    path: Path
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: TensorFile, alphas: bool) -> "LoraScale":
        """Read the header, else the config beside a file of PEFT's. `alphas`: every layer holds its own.

        Raises:
            CheckpointError: they cannot be read, ask for more than a plain product, or the config is missing.
        """
        peft = any(key.startswith(PEFT_PREFIX) for key in file.shapes) or file.path.name == "adapter_model.safetensors"
        beside = file.path.with_name(ADAPTER_CONFIG)
        if HEADER in file.metadata:
            scale = cls(file.path, _by_network(_parse(file.path, HEADER, file.metadata[HEADER])))
        elif peft and beside.is_file():
            scale = cls(beside, {"": _parse(beside, "the file", beside.read_text(encoding="utf-8", errors="replace"))})
        elif peft and not alphas:
            raise CheckpointError(
                f"{file.path}: saved by PEFT, which writes alpha, and so the LoRA's strength, into {ADAPTER_CONFIG} "
                "beside it; there is none. Copy it from where this file came from"
            )
        else:
            scale = cls(file.path)
        for options in scale.options.values():
            scale._check(options)
        return scale

    def _check(self, options: Mapping[str, Any]) -> None:
        """Refuse what is not a plain product, and values of other types than PEFT's."""
        kind = options.get("peft_type") or "LORA"
        start = str(options.get("init_lora_weights")).lower()
        if kind != "LORA":
            raise CheckpointError(f"{self.path}: an adapter of type {kind}; latentrt adds plain LoRAs")
        if options.get("use_dora") or options.get("lora_bias") or start.startswith(MOVED_BASES):
            name = next((name for name in ("use_dora", "lora_bias") if options.get(name)), f"init_lora_weights {start}")
            raise CheckpointError(
                f"{self.path}: {name}; latentrt adds plain LoRAs. Merge it into the checkpoint with PEFT first"
            )
        self._check_numbers(options)

    def _check_numbers(self, options: Mapping[str, Any]) -> None:
        numbers = {name: options[name] for name in ("lora_alpha", "r") if options.get(name) is not None}
        for name in ("alpha_pattern", "rank_pattern"):
            pattern = options.get(name) or {}
            if not isinstance(pattern, Mapping):
                raise CheckpointError(f"{self.path}: {name} must map layers to numbers, not {pattern!r}")
            for layer in pattern:
                try:
                    re.compile(layer)
                except re.error as error:
                    raise CheckpointError(f"{self.path}: {name}, {layer}: no regular expression ({error})") from error
            numbers |= {f"{name}, {layer}": value for layer, value in pattern.items()}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise CheckpointError(f"{self.path}: {name} must be a number, not {value!r}")

    def scale(self, folder: str, name: str, rank: int, alpha: float | None) -> float:
        """Compute by what a layer's product is multiplied; `alpha` is the layer's own, where the file holds it.

        Raises:
            CheckpointError: PEFT's config states another rank than the file's matrices have.
        """
        options = self.options.get(folder, self.options.get("", {}))
        stated = _for_layer(options, "rank_pattern", "r", name)
        if alpha is None and stated is not None and stated != rank:
            raise CheckpointError(
                f"{self.path}: states rank {stated:g} for {folder}.{name}, but the file's matrices have rank {rank}. "
                "Take both from one adapter"
            )
        if alpha is None:
            found = _for_layer(options, "alpha_pattern", "lora_alpha", name)
            # PEFT's own default, if its config is there and says nothing.
            alpha = found if found is not None else 8.0 if "" in self.options else float(rank)
        return alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)

    def to_bytes(self) -> bytes:
        """Bytes that change with any option."""
        return json.dumps(self.options, sort_keys=True).encode() if self.options else b""


def _parse(path: Path, what: str, text: str) -> Mapping[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: {what} is not JSON ({error})") from error
    if not isinstance(options, dict):
        raise CheckpointError(f"{path}: {what} must hold a JSON object, not {options!r}")
    return options


def _by_network(header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort diffusers' flat header, `unet.lora_alpha`, by network."""
    networks: dict[str, dict[str, Any]] = {}
    for key, value in header.items():
        folder, _, option = key.rpartition(".")
        networks.setdefault(folder or "unet", {})[option] = value
    return networks


def _for_layer(options: Mapping[str, Any], patterns: str, default: str, name: str) -> float | None:
    """The number for a layer: of the first pattern that fits its path, with or without `text_model.`, as in PEFT."""
    bare = name.removeprefix("text_model.")
    for pattern, number in (options.get(patterns) or {}).items():
        if any(re.fullmatch(rf"(.*\.)?({pattern})", path) for path in (bare, f"text_model.{bare}")):
            return float(number)
    number = options.get(default)
    return None if number is None else float(number)
