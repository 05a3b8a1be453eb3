"""Which LoRAs a picture is drawn with, and how strongly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentrt.runtime.errors import RequestError, shown

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
NETWORKS = (UNET, *TEXT_ENCODERS)
"""The networks that a LoRA can change."""

Strengths = tuple[tuple[str, float], ...]
"""LoRAs by their digests, in this order, each with its strength in one network."""


@dataclass(frozen=True, slots=True, order=True)
class LoraUse:
    """One loaded LoRA, by the name it was loaded under, and its strength in each network."""

    name: str
    unet: float
    text_encoder: float
    text_encoder_2: float

    def weight(self, network: str) -> float:
        """The strength in one network."""
        return float(getattr(self, network))


Mix = tuple[LoraUse, ...]
"""The LoRAs of one prompt's pictures."""


def read_loras(given: Mapping[Any, Any], is_number: Callable[[Any], bool]) -> dict[str, float | dict[str, float]]:
    """Check `{name: strength}` or `{name: {"unet": strength, "text_encoder": strength}}`; numbers become Python's own.

    Raises:
        RequestError: a name is no text, a strength no finite number, or a network unknown.
    """
    read: dict[str, float | dict[str, float]] = {}
    for name, value in given.items():
        if not isinstance(name, str) or not name:
            raise RequestError(f"loras: {name!r} is no name of a LoRA; give {{name: strength}}")
        if isinstance(value, Mapping):
            if unknown := [str(network) for network in value if network not in NETWORKS]:
                raise RequestError(f"loras, {name}: {', '.join(unknown)} is no network; they are {', '.join(NETWORKS)}")
            read[name] = {network: _strength(name, weight, is_number) for network, weight in value.items()}
        else:
            read[name] = _strength(name, value, is_number)
    return read


def _strength(name: str, value: Any, is_number: Callable[[Any], bool]) -> float:
    if not is_number(value):
        raise RequestError(f"loras, {name}: strength {shown(value)}: must be a finite number, such as 0.8")
    return float(value)


def mix_of(loras: Mapping[str, float | Mapping[str, float]]) -> Mix:
    """The mix of checked strengths, in the order of the names; a network that is left out has strength 0."""
    by_network = {
        name: value if isinstance(value, Mapping) else dict.fromkeys(NETWORKS, value) for name, value in loras.items()
    }
    uses = [LoraUse(name, *(weights.get(network, 0.0) for network in NETWORKS)) for name, weights in by_network.items()]
    return tuple(sorted(use for use in uses if any(use.weight(network) for network in NETWORKS)))
