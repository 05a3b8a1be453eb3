"""The declaration of a setting, and checks of which settings are given."""

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Literal

from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.kinds import Kind, one_or_more


class Group(StrEnum):
    """Groups of settings, in the order in which help and docs list them."""

    PROMPTS = "Prompts"
    STEPS = "Steps"
    PICTURES = "Pictures"
    SOURCE = "Starting from a picture"
    MICRO_CONDITIONING = "SDXL's micro-conditioning"
    HAND_OVER = "Handing over to another model"


@dataclass(frozen=True, slots=True)
class Use:
    """When a setting acts: `applies` tells it of a `Request`, and `otherwise` says why it does not."""

    applies: Callable[[Any], bool]
    otherwise: str


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting: everything that signature, command line, docs and metadata say about it.

    `help`: one sentence. `per`: "request" for a single value; "prompt" or "picture" for one value, or a list of one per
    prompt or picture. `default`: the value when none is given; None if that depends on the bundle or on other settings,
    and then `default_text` says how. `aliases`: its names in other programs. `needs`: it has a meaning only with one of
    these settings. `not_with`: it would be dropped beside one of these, settings or "embeddings", and why. `use`: when
    it acts, if that depends on values; what does not act is warned of and left out of the metadata. `option`: whether
    the command line has it.
    """

    help: str
    kind: Kind
    group: Group
    per: Literal["request", "prompt", "picture"] = "request"
    default: Any = None
    default_text: str = ""
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    not_with: Mapping[str, str] = field(default_factory=dict)
    use: Use | None = None
    option: bool = True

    def read(self, name: str, value: Any) -> Any:
        """The checked value; a tuple if it may be given per prompt or per picture.

        Raises:
            RequestError: the value, or an entry of it, is of another kind or out of range.
        """
        if self.per == "request":
            return self.kind.read(name, value)
        return tuple(self.kind.read(name, entry) for entry in one_or_more(value))

    @property
    def default_words(self) -> str:
        """The default in words; empty if there is none."""
        if self.default_text or self.default is None:
            return self.default_text
        return str(self.default)

    @property
    def repetition(self) -> str:
        """How many values it takes, in words; empty for a single one."""
        return "" if self.per == "request" else f"one for all, or one per {self.per}"


def check_count(name: str, values: Sized, wanted: int, what: str) -> None:
    """Raise `RequestError` unless there is one value, or one per prompt or picture (`what`)."""
    if len(values) not in (1, wanted):
        raise RequestError(f"{name}: {len(values)} given for {wanted} {what}s; give one, or one per {what}")


DIFFUSERS_ARGUMENTS: Mapping[str, str] = {
    "callback": "give progress=, a function of (steps done, steps in all)",
    "callback_on_step_end": "give progress=, a function of (steps done, steps in all)",
    "cross_attention_kwargs": "give loras={name: strength}, with LoRAs loaded by load_lora (docs/lora.md)",
    "eta": "it is a field of the schedule here: schedule={'eta': ...}",
    "generator": "give seed=, which draws what torch's CPU generator of that seed would",
    "negative_crops_coords_top_left": "give negative_conditioning=MicroConditioning(crop=...)",
    "negative_original_size": "give negative_conditioning=MicroConditioning(original=...)",
    "negative_pooled_prompt_embeds": "give Embeddings as the prompt",
    "negative_prompt_embeds": "give Embeddings as the prompt",
    "negative_target_size": "give negative_conditioning=MicroConditioning(target=...)",
    "output_type": "a result has pictures and latents; decode=False draws the latents alone",
    "pooled_prompt_embeds": "give Embeddings as the prompt",
    "prompt_embeds": "give Embeddings as the prompt",
    "return_dict": "a result is always a Result; leave it out",
    "padding_mask_crop": "not here yet; crop the image around the mask, and paste the result",
    "scheduler": "give sampler=, and schedule= for fields of its config",
}
"""Arguments of diffusers' pipelines that no setting corresponds to, and what to do instead."""


def check_names(given: Iterable[str], settings: Mapping[str, Setting]) -> None:
    """Raise `RequestError` for unknown settings; it names the nearest one, or ours for a name of another program."""
    if unknown := sorted(set(given) - settings.keys()):
        answers = {name: _answer(name, settings) for name in unknown}
        known = "" if all(answers.values()) else f". The settings are {', '.join(sorted(settings))}"
        told = "; ".join(f"{name}: {answer or 'no such setting'}" for name, answer in answers.items())
        raise RequestError(f"{told}{known}")


def _answer(name: str, settings: Mapping[str, Setting]) -> str:
    """What to write instead; empty if nothing is known of the name."""
    if name in DIFFUSERS_ARGUMENTS:
        return DIFFUSERS_ARGUMENTS[name]
    ours = next((own for own, setting in settings.items() if name in setting.aliases), None)
    if ours is not None:
        return f"it is called {ours} here"
    nearest = get_close_matches(name, settings, n=1, cutoff=0.7)
    return f"no such setting, the nearest is {nearest[0]}" if nearest else ""


def check_together(given: Iterable[str], settings: Mapping[str, Setting]) -> None:
    """Raise `RequestError` for a setting that lacks one that it needs, or that would be dropped beside another one.

    `given`: names of settings, and "embeddings" where these are the prompt.
    """
    names = set(given)
    for name in (name for name in settings if name in names):
        for other, reason in settings[name].not_with.items():
            if other in names:
                raise RequestError(f"{name}, {other}: both given; {reason}")
    for name in settings.keys() & names:
        needs = settings[name].needs
        if needs and not names & set(needs):
            remedy = " or ".join(f"{other}=" for other in needs)
            raise RequestError(f"{name}: it needs {remedy}")
