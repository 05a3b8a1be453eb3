"""The options of `latentrt generate`: a field for each setting of a request, and those of a second pass."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Optional

import typer

from latentrt.cli.options import SAMPLER_NAMES, OptionalFloat, OptionalInt, OptionalPath, OptionalText
from latentrt.runtime.samplers import ScheduleConfig

# typer reads these annotations at run time, which is why they are not written X | None.
Texts = Optional[list[str]]  # noqa: UP045
Floats = Optional[list[float]]  # noqa: UP045
Integers = Optional[list[int]]  # noqa: UP045
OptionalBool = Optional[bool]  # noqa: UP045


def _option(panel: str) -> Callable[..., Any]:
    """`typer.Option` with a panel of the help."""

    def option(*flags: str, help: str, metavar: str | None = None) -> Any:
        return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel=panel)

    return option


_text, _steps, _size = _option("Prompts"), _option("Steps"), _option("Pictures")
_source, _ids = _option("Starting from a picture"), _option("SDXL's micro-conditioning")
_second = _option("A second pass")


@dataclass(frozen=True, slots=True)
class SettingOptions:
    """Settings by the names of `latentrt.runtime.request.settings`; None, or nothing, where an option was not given."""

    negative: Annotated[
        Texts, _text("--negative", metavar="TEXT", help="What to keep away from; once, or for each prompt.")
    ] = None
    prompt_2: Annotated[
        Texts, _text("--prompt-2", metavar="TEXT", help="For the second text encoder; default: the same.")
    ] = None
    negative_2: Annotated[
        Texts, _text("--negative-2", metavar="TEXT", help="For the second text encoder; default: the same.")
    ] = None
    clip_skip: Annotated[OptionalInt, _text("--clip-skip", help="Layers of the text encoders that are skipped.")] = None
    steps: Annotated[OptionalInt, _steps("--steps", help="Evaluations of the U-Net.")] = None
    sampler: Annotated[OptionalText, _steps("--sampler", help=f"One of {SAMPLER_NAMES}.")] = None
    schedule: Annotated[
        Texts,
        _steps("--schedule", metavar="FIELD=VALUE", help="use_karras_sigmas=true, for one; repeatable (samplers.md)."),
    ] = None
    guidance: Annotated[
        Floats, _steps("--guidance", metavar="SCALE", help="Guidance scale; 1: none. Once, or for each prompt.")
    ] = None
    guidance_rescale: Annotated[
        OptionalFloat, _steps("--guidance-rescale", help="0 to 1: how far contrast is brought back; 0.7 is usual.")
    ] = None
    guidance_interval: Annotated[
        OptionalText, _steps("--guidance-interval", metavar="FROM:TO", help="Shares of the steps that are guided.")
    ] = None
    seed: Annotated[
        Integers,
        _size(
            "--seed",
            metavar="NUMBER",
            help="Same seed, same pictures; once, or for each picture. Default: a fresh one.",
        ),
    ] = None
    images: Annotated[OptionalInt, _size("--images", help="Pictures of each prompt; default 1.")] = None
    width: Annotated[OptionalInt, _size("--width", help="Pixels, a multiple of 8.")] = None
    height: Annotated[OptionalInt, _size("--height", help="Pixels, a multiple of 8.")] = None
    image: Annotated[
        Texts, _source("--image", metavar="FILE", help="Picture to start from; once, or for each picture to draw.")
    ] = None
    mask: Annotated[Texts, _source("--mask", metavar="FILE", help="Light where the picture is drawn anew.")] = None
    strength: Annotated[
        OptionalFloat, _source("--strength", help="0 keeps the picture, 1 forgets it; default 0.8, with a mask 1.")
    ] = None
    paste_back: Annotated[
        OptionalBool,
        _source("--paste-back/--no-paste-back", help="Outside the mask, the picture's own pixels, untouched."),
    ] = None
    original_size: Annotated[
        OptionalText, _ids("--original-size", metavar="WIDTHxHEIGHT", help="The size that the picture shall have had.")
    ] = None
    crop: Annotated[OptionalText, _ids("--crop", metavar="LEFTxTOP", help="What shall be cropped; default 0x0.")] = None
    target_size: Annotated[OptionalText, _ids("--target-size", metavar="WIDTHxHEIGHT", help="The size asked for.")] = (
        None
    )
    aesthetic_score: Annotated[
        OptionalFloat, _ids("--aesthetic-score", help="SDXL's refiner: beauty asked for; default 6.")
    ] = None
    negative_aesthetic_score: Annotated[
        OptionalFloat, _ids("--negative-aesthetic-score", help="Beauty to keep away from; default 2.5.")
    ] = None


@dataclass(frozen=True, slots=True)
class SecondPassOptions:
    """What is done with the latents or the pictures of the first model."""

    refiner: Annotated[
        OptionalPath, _second("--refiner", metavar="BUNDLE", help="A second model that takes the latents over.")
    ] = None
    refiner_start: Annotated[
        OptionalFloat, _second("--refiner-start", help="The share of the denoising where it takes over; default 0.8.")
    ] = None
    refiner_strength: Annotated[
        OptionalFloat, _second("--refiner-strength", help="It refines finished latents instead, so strongly.")
    ] = None
    upscale: Annotated[
        OptionalFloat, _second("--upscale", metavar="FACTOR", help="Enlarge the picture and draw it again.")
    ] = None
    upscale_strength: Annotated[
        OptionalFloat, _second("--upscale-strength", help="How much is drawn again; default 0.5.")
    ] = None


def given_options(*groups: SettingOptions | SecondPassOptions) -> dict[str, Any]:
    """The options that were given, parsed, by name; a list of one is its entry."""
    given = {field.name: getattr(group, field.name) for group in groups for field in fields(group)}
    return {name: _parsed(name, value) for name, value in given.items() if value not in (None, [])}


def _parsed(name: str, value: Any) -> Any:
    if name in PARSERS:
        try:
            return PARSERS[name](value)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=f"'--{name.replace('_', '-')}'") from error
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _schedule(entries: list[str]) -> dict[str, Any]:
    """Fields of the scheduler config; a value that is no JSON is text."""
    found: dict[str, Any] = {}
    known = sorted(field.name for field in fields(ScheduleConfig))
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or name not in known:
            raise ValueError(f"{entry!r} is not FIELD=VALUE with one of the fields {', '.join(known)}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _pair(value: str, pattern: str, words: str) -> tuple[str, str]:
    found = re.fullmatch(pattern, value)
    if found is None:
        raise ValueError(f"{value!r} is not {words}")
    return found[1], found[2]


def _interval(value: str) -> tuple[float, float]:
    low, high = _pair(value, r"([\d.]+):([\d.]+)", "FROM:TO, such as 0.2:0.8")
    return float(low), float(high)


def _across_and_down(value: str) -> tuple[int, int]:
    """(down, across), as settings have it, of `ACROSSxDOWN`, as people write it."""
    across, down = _pair(value, r"(\d+)x(\d+)", "two whole numbers, across x down, such as 1024x768")
    return int(down), int(across)


PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "schedule": _schedule,
    "guidance_interval": _interval,
    "original_size": _across_and_down,
    "crop": _across_and_down,
    "target_size": _across_and_down,
}
