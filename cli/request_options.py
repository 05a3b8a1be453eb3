"""The options of `latentrt generate`: one per setting of a request, and those of a second pass."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Optional

import typer

from latentrt.cli.groups import Options
from latentrt.cli.options import OptionalFloat, OptionalPath, OptionalText, flag
from latentrt.runtime.ensemble import HANDOVER
from latentrt.runtime.request.kinds import FLAG
from latentrt.runtime.request.schedule_kinds import FIELDS
from latentrt.runtime.request.setting import Setting
from latentrt.runtime.request.settings import SETTINGS
from latentrt.runtime.request.signature import describe
from latentrt.runtime.upscale import UPSCALE_STRENGTH


def _is_repeatable(setting: Setting) -> bool:
    return setting.per != "request" or setting.kind is FIELDS


def _option(name: str, setting: Setting) -> Any:
    """The annotation of a setting's option, whose default is None, for "not given"."""
    kind: Any = setting.kind.text_type
    declaration = f"{flag(name)}/{flag(f'no_{name}')}" if setting.kind is FLAG else flag(name)
    help_text = describe(setting) + (" Repeatable." if setting.kind is FIELDS else "")
    option = typer.Option(
        declaration, help=help_text, metavar=setting.kind.metavar, rich_help_panel=setting.group.value
    )
    return Annotated[Optional[list[kind] if _is_repeatable(setting) else kind], option]  # noqa: UP045 - typer reads it


GivenSettings = Annotated[
    Mapping[str, Any], Options({name: _option(name, setting) for name, setting in SETTINGS.items() if setting.option})
]
"""Settings by name; None or an empty list for an option that was not given."""


def _second(*flags: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel="A second pass")


@dataclass(frozen=True, slots=True)
class SecondPassOptions:
    """Options for a second pass over the latents or pictures of the first model."""

    refiner: Annotated[
        OptionalPath, _second("--refiner", metavar="BUNDLE", help="Second model, which takes over the latents.")
    ] = None
    refiner_start: Annotated[
        OptionalFloat,
        _second("--refiner-start", help=f"Share of the denoising at which it takes over. Default: {HANDOVER}."),
    ] = None
    refiner_strength: Annotated[
        OptionalFloat, _second("--refiner-strength", help="Let it refine finished latents instead, with this strength.")
    ] = None
    upscale: Annotated[
        OptionalFloat,
        _second("--upscale", metavar="FACTOR", help="Enlarge the picture, and draw it again at that size."),
    ] = None
    upscale_strength: Annotated[
        OptionalFloat,
        _second("--upscale-strength", help=f"How much of the enlarged picture to redraw. Default: {UPSCALE_STRENGTH}."),
    ] = None
    upscale_resample: Annotated[
        OptionalText,
        _second(
            "--upscale-resample", metavar="FILTER", help="lanczos, bicubic, bilinear or nearest. Default: lanczos."
        ),
    ] = None
    upscale_enlarge: Annotated[
        OptionalText,
        _second("--upscale-enlarge", metavar="WHAT", help="pixels, or latents, which stay undecoded. Default: pixels."),
    ] = None


def given_options(settings: Mapping[str, Any], second_pass: SecondPassOptions) -> dict[str, Any]:
    """The options that were given, parsed, by name; a list of one is its entry."""
    given = {**settings, **asdict(second_pass)}
    return {name: _parsed(name, value) for name, value in given.items() if value not in (None, [])}


def _parsed(name: str, value: Any) -> Any:
    if name not in SETTINGS:
        return value
    setting = SETTINGS[name]
    parse: Callable[[Any], Any] = setting.kind.parse
    try:
        if setting.per == "request":
            return parse(value)
        parsed = [parse(entry) for entry in value]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{flag(name)}'") from error
    return parsed[0] if len(parsed) == 1 else parsed
