"""What one declaration of a setting holds, and what a name that is no setting is answered with."""

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Literal

from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.kinds import Kind, one_or_more


class Group(StrEnum):
    """Groups of settings, in the order in which people meet them."""

    PROMPTS = "Prompts"
    STEPS = "Steps"
    PICTURES = "Pictures"
    SOURCE = "Starting from a picture"
    MICRO_CONDITIONING = "SDXL's micro-conditioning"
    HAND_OVER = "Handing over to another model"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a request: everything that signature, command line, docs and metadata say of it.

    `help`: one sentence. `per`: given once for the request, or also as a list with one entry per prompt or per picture.
    `default`: its value where none is given; None where that depends on the bundle or on other settings, and
    `default_text` says how. `also`: its names elsewhere. `needs`: it means something only with one of these settings.
    `option`: a command line can give it.
    """

    help: str
    kind: Kind
    group: Group
    per: Literal["request", "prompt", "picture"] = "request"
    default: Any = None
    default_text: str = ""
    also: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    option: bool = True

    def read(self, name: str, value: Any) -> Any:
        """The checked value; a tuple where it may be given per prompt or per picture.

        Raises:
            RequestError: the value, or an entry of it, is not what it must be.
        """
        if self.per == "request":
            return self.kind.read(name, value)
        return tuple(self.kind.read(name, entry) for entry in one_or_more(value))

    @property
    def default_words(self) -> str:
        """The default as people read it; empty where nothing is the default."""
        if self.default_text or self.default is None:
            return self.default_text
        return str(self.default)

    @property
    def repetition(self) -> str:
        """How often it may be given, as people read it; empty for once."""
        return "" if self.per == "request" else f"once for all, or one per {self.per}"


def check_count(name: str, values: Sized, wanted: int, what: str) -> None:
    """Raise `RequestError` where neither one value is given nor one per prompt or picture (`what`)."""
    if len(values) not in (1, wanted):
        raise RequestError(f"{name}: {len(values)} given for {wanted} {what}s; give one, or one per {what}")


ELSEWHERE: Mapping[str, str] = {
    "callback_on_step_end": "give progress=, a function of (steps done, steps in all)",
    "cross_attention_kwargs": "LoRAs are added by the export: latentrt export CHECKPOINT -o BUNDLE --lora FILE:WEIGHT",
    "eta": "it is a field of the schedule here: schedule={'eta': 0.5}",
    "generator": "give seed=, which draws what torch's CPU generator of that seed would",
    "negative_pooled_prompt_embeds": "give Embeddings as the prompt",
    "negative_prompt_embeds": "give Embeddings as the prompt",
    "output_type": "a result has pictures and latents; decode=False draws the latents alone",
    "pooled_prompt_embeds": "give Embeddings as the prompt",
    "prompt_embeds": "give Embeddings as the prompt",
    "return_dict": "a result is always a Result; leave it out",
    "scheduler": "give sampler=, and schedule= for fields of its config",
}
"""What diffusers' pipelines take and no setting is by another name, and what to do instead."""


def check_names(given: Iterable[str], settings: Mapping[str, Setting]) -> None:
    """Raise `RequestError` for names that are no settings; says the nearest, or ours for a name used elsewhere."""
    if unknown := sorted(set(given) - settings.keys()):
        answers = "; ".join(f"{name}: {_answer(name, settings)}" for name in unknown)
        raise RequestError(f"{answers}. The settings are {', '.join(sorted(settings))}")


def _answer(name: str, settings: Mapping[str, Setting]) -> str:
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    ours = next((own for own, setting in settings.items() if name in setting.also), None)
    if ours is not None:
        return f"its name here is {ours}"
    nearest = get_close_matches(name, settings, n=1, cutoff=0.7)
    return "no such setting" + (f", the nearest is {nearest[0]}" if nearest else "")


def check_needs(given: Iterable[str], settings: Mapping[str, Setting]) -> None:
    """Raise `RequestError` for a setting that means nothing without another one, which is not given."""
    names = set(given)
    for name in settings.keys() & names:
        needs = settings[name].needs
        if needs and not names & set(needs):
            remedy = " or ".join(f"{other}=" for other in needs)
            raise RequestError(f"{name}: means nothing without {' or '.join(needs)}; add {remedy}")
