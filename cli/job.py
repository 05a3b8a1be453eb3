"""The job of one `latentrt generate`: prompts and options, checked together, and the pipelines that draw them."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import typer

from latentrt.cli.options import flag
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.drawing.loop import StepProgress
from latentrt.runtime.ensemble import Ensemble
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.settings import SETTINGS, Settings
from latentrt.runtime.samplers import over
from latentrt.runtime.upscale import generate_large

NEEDS: Mapping[str, str] = {
    **{
        name: next(other for other in setting.needs if SETTINGS[other].option)
        for name, setting in SETTINGS.items()
        if setting.option and setting.needs
    },
    "refiner_start": "refiner",
    "refiner_strength": "refiner",
    **dict.fromkeys(("upscale_strength", "upscale_resample", "upscale_enlarge"), "upscale"),
}
"""Options that need another one."""

UPSCALE: Mapping[str, str] = {
    "scale": "upscale",
    "strength": "upscale_strength",
    "resample": "upscale_resample",
    "enlarge": "upscale_enlarge",
}
"""The options of the high-resolution fix, by argument of `generate_large`; `UpscaleNote` has fields of these names."""

EXCLUDES = {
    ("refiner_start", "refiner_strength"): "the refiner takes over before the end, or it refines what is finished",
    ("refiner", "upscale"): "there is one second pass",
    ("image", "upscale"): "the high-resolution fix begins with a prompt alone",
    ("image", "refiner_strength"): "two passes begin with a prompt alone; draw first, and refine the picture then",
}
"""Options that do not go together, and why."""


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts, and the options that were given, by name: settings of the request, and those of a second pass."""

    prompts: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Pictures to draw, as far as the options say."""
        return max(1, len(self.prompts)) * int(self.options.get("images", 1))

    def over(self, stored: "Job") -> "Job":
        """Put these options on top of a stored job's; schedules are merged field by field.

        Steps and a schedule of one's own decide one another, so that the stored ones give way.
        """
        decided = {"steps", "timesteps", "sigmas"}
        kept = (
            {name: value for name, value in stored.options.items() if name not in decided}
            if decided & self.options.keys()
            else stored.options
        )
        options = {**kept, **self.options}
        if "schedule" in options:
            options["schedule"] = over(stored.options.get("schedule", {}), self.options.get("schedule", {}))
        return Job(self.prompts or stored.prompts, options)

    def check(self) -> None:
        """Raise a usage error if options do not go together, or if there is no prompt."""
        if not self.prompts:
            raise typer.BadParameter("Missing argument 'PROMPT'; or name --prompts-file, or --from-png")
        for name, other in NEEDS.items():
            if name in self.options and other not in self.options:
                raise typer.BadParameter(f"needs {flag(other)} too", param_hint=flag(name))
        for (one, other), reason in EXCLUDES.items():
            if one in self.options and other in self.options:
                raise typer.BadParameter(f"{flag(one)} and {flag(other)} do not go together: {reason}")

    def draw(self, bundle: Bundle, load: Callable[[Bundle], Pipeline], progress: StepProgress) -> Result:
        """Load the pipelines that are needed, and draw."""
        options = dict(self.options)
        refiner, start = options.pop("refiner", None), options.pop("refiner_start", None)
        strength = options.pop("refiner_strength", None)
        upscale = {argument: options.pop(name) for argument, name in UPSCALE.items() if name in options}
        settings: Settings = {**options}  # type: ignore[typeddict-item]
        second = None if refiner is None else Bundle.open(refiner)
        with ExitStack() as stack:
            pipeline = stack.enter_context(load(bundle))
            if upscale:
                return generate_large(pipeline, self.prompts, progress=progress, **settings, **upscale)
            if second is None:
                return pipeline.generate(self.prompts, progress=progress, **settings)
            both = Ensemble(pipeline, stack.enter_context(load(second)))
            if strength is not None:
                return both.refine(self.prompts, progress=progress, **settings | {"strength": strength})
            how = {} if start is None else {"handover": start}
            return both.generate(self.prompts, progress=progress, **how, **settings)
