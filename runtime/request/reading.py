"""From a user's prompt and settings to a checked request."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np

from latentrt.runtime.bundle.manifest import Manifest
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.errors import RequestError
from latentrt.runtime.lora.mix import mix_of
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.images import CheckSize, check_lit, read_masks, read_pictures
from latentrt.runtime.request.kinds import TEXT, one_or_more
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.request import OWN_SCHEDULE, Request
from latentrt.runtime.request.setting import check_count, check_names, check_together
from latentrt.runtime.request.settings import MAX_SEED, SETTINGS, STRENGTH, STRENGTH_WITH_MASK, Settings
from latentrt.runtime.request.source import Source
from latentrt.runtime.samplers import SAMPLERS, fields_read, over, sampler_named
from latentrt.runtime.samplers.names import SPACINGS

Value = TypeVar("Value")

Prompt = str | Sequence[str] | Embeddings
"""One text, several, or embeddings of them."""


def make_request(prompt: Prompt, settings: Settings, manifest: Manifest, check_size: CheckSize) -> Request:
    """Make a request; what the settings leave open has the bundle's default.

    `check_size` is called before pictures are resized.

    Raises:
        RequestError: a value that no build serves, or an unknown setting.
    """
    prompts = ("",) * len(prompt) if isinstance(prompt, Embeddings) else read_prompts(prompt)
    values = read_settings(settings, isinstance(prompt, Embeddings))
    per_prompt = {name: _spread(name, values, len(prompts)) for name in ("negative", "prompt_2", "negative_2")}
    guidance = _or_default(_spread("guidance", values, len(prompts)), (manifest.defaults.guidance,) * len(prompts))
    count = len(prompts) * values["images"]
    seeds, variation_seeds = _read_seeds(values, count)
    source, width, height = _read_source(values, manifest.model, check_size)
    if source is not None:
        _check_source_count(source, count)
    positive, negative = _micro_conditioning(values)
    values["sampler"], values["schedule"] = _read_sampler(values, manifest)
    return Request(
        prompts=prompts,
        negatives=_or_default(per_prompt["negative"], (None,) * len(prompts)),
        prompts_2=_or_default(per_prompt["prompt_2"], (None,) * len(prompts)),
        negatives_2=_or_default(per_prompt["negative_2"], (None,) * len(prompts)),
        guidance=guidance,
        guided=_takes_negative_rows(guidance, values["guidance_interval"], manifest.model),
        seeds=seeds,
        variation_seeds=variation_seeds,
        steps=_read_steps(values, manifest.defaults.steps),
        sampler=values["sampler"],
        schedule=tuple((values["schedule"] or {}).items()),
        width=width,
        height=height,
        settings=cast(Settings, values),
        source=source,
        embeddings=prompt if isinstance(prompt, Embeddings) else None,
        loras=tuple(map(mix_of, _or_default(_spread("loras", values, len(prompts)), ({},) * len(prompts)))),
        conditioning=positive,
        negative_conditioning=negative,
    )


def read_prompts(prompt: str | Sequence[str]) -> tuple[str, ...]:
    """The texts of a prompt.

    Raises:
        RequestError: the list is empty, or an entry is not text.
    """
    if isinstance(prompt, Embeddings):
        raise RequestError("prompt: Embeddings, where only texts make sense")
    prompts = tuple(TEXT.read("prompt", text) for text in one_or_more(prompt))
    if not prompts:
        raise RequestError("prompt: an empty list; give at least one prompt (an empty text is allowed)")
    return prompts


def read_settings(settings: Settings, embedded: bool = False) -> dict[str, Any]:
    """Every setting, checked. A setting that is not given has its default; None if the bundle or other settings decide.

    `embedded`: embeddings are the prompt.

    Raises:
        RequestError: an unknown setting, a value of another kind, or settings that do not go together.
    """
    given = read_given(settings)
    changed = [name for name, value in given.items() if not _is_default_number(value, SETTINGS[name].default)]
    check_together([*changed, *(["embeddings"] if embedded else [])], SETTINGS)
    defaults = {name: setting.default for name, setting in SETTINGS.items()}
    return {**defaults, **given}


def read_given(settings: Settings) -> Settings:
    """The settings that are given, checked one by one, as values of Python's own that can be read again.

    Raises:
        RequestError: an unknown setting, or a value of another kind.
    """
    check_names(settings, SETTINGS)
    given = {name: SETTINGS[name].read(name, value) for name, value in settings.items() if value is not None}
    return cast(Settings, given)


def read_prompt(prompt: Prompt) -> Prompt:
    """Embeddings, or the texts of a prompt, which can be read again.

    Raises:
        RequestError: the list is empty, or an entry is not text.
    """
    return prompt if isinstance(prompt, Embeddings) else read_prompts(prompt)


def _is_default_number(value: Any, default: Any) -> bool:
    """Whether a number, or a truth value, says no more than leaving the setting out."""
    return isinstance(value, int | float) and value == default


def _or_default(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def _spread(name: str, values: Mapping[str, Any], prompts: int) -> Any:
    """The values of a setting, one per prompt; None if it was not given."""
    given = values[name]
    if given is None:
        return None
    check_count(name, given, prompts, "prompt")
    return given * prompts if len(given) == 1 else given


def _read_seeds(values: Mapping[str, Any], count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds and the variation's, where -1, or none, is a fresh one.

    AUTOMATIC1111 counts a single seed up from picture to picture; with a variation, that of the variation.
    """
    varied = values["variation_strength"] > 0
    given = {"seed": _or_default(values["seed"], (-1,))}
    given |= {"variation_seed": _or_default(values["variation_seed"], (-1,))} if varied else {}
    seeds: dict[str, tuple[int, ...]] = {"variation_seed": ()}
    for name, entries in given.items():
        check_count(name, entries, count, "picture")
        fresh = tuple(secrets.randbits(32) if entry == -1 else entry for entry in entries)
        if values["noise"] == "a1111" and len(fresh) == 1:
            rise = name == "variation_seed" or not varied
            fresh = tuple(fresh[0] + rise * picture for picture in range(count))
        if max(fresh) > MAX_SEED:
            raise RequestError(f"{name} {fresh[0]}: with {count} pictures, the last one's would be above {MAX_SEED}")
        seeds[name] = fresh
    return seeds["seed"], seeds["variation_seed"]


def _read_sampler(values: Mapping[str, Any], manifest: Manifest) -> tuple[str, dict[str, Any] | None]:
    """Our name of the sampler, and the fields of the schedule, those that its name implies among them."""
    named = sampler_named(_or_default(values["sampler"], manifest.defaults.sampler))
    fields = over(named.fields, values["schedule"] or {})
    if fields.get("sigma_spacing") == "align_your_steps":
        fields["sigma_spacing"] = "align_your_steps_xl" if manifest.model.time_ids else "align_your_steps_15"
    for name in OWN_SCHEDULE:
        takers = sorted(other for other, sampler in SAMPLERS.items() if name in fields_read(sampler))
        if values[name] is not None and named.sampler not in takers:
            raise RequestError(
                f"{name}: sampler {named.sampler!r} follows its own; those that take {name} are {', '.join(takers)}"
            )
        if values[name] is not None and (spaced := SPACINGS & fields.keys()):
            raise RequestError(f"{name}, {', '.join(sorted(spaced))}: both given; {name} are the whole schedule")
    return named.sampler, fields or None


def _read_steps(values: Mapping[str, Any], default: int) -> int:
    """The number of steps: given, that of the request's own schedule, or the bundle's."""
    for name in OWN_SCHEDULE:
        if values[name] is not None:
            own = sum(1 for value in values[name] if value > 0 or name == "timesteps")
            if values["steps"] not in (None, own):
                raise RequestError(f"steps {values['steps']}, {name}: these are {own} steps; leave steps out")
            return own
    return default if values["steps"] is None else int(values["steps"])


def _takes_negative_rows(guidance: Sequence[float], interval: tuple[float, float], model: Model) -> bool:
    """Whether the U-Net runs negative rows; one that takes the scale as an input (`guidance_embedding`) needs none."""
    return any(scale > 1 for scale in guidance) and interval[0] < interval[1] and not model.guidance_embedding


def _read_source(values: Mapping[str, Any], model: Model, check_size: CheckSize) -> tuple[Source | None, int, int]:
    """The source that the request starts from, and its width and height."""
    image, latents, masks = values["image"], values["latents"], values["mask"]
    if image is None and latents is None:
        return None, _or_default(values["width"], model.native_size), _or_default(values["height"], model.native_size)
    strength = _or_default(values["strength"], STRENGTH if masks is None else STRENGTH_WITH_MASK)
    if latents is not None:
        return _read_latents(values, model, strength)
    pixels = read_pictures(image, values["width"], values["height"], check_size)
    height, width = pixels.shape[2:]
    mask = None if masks is None else read_masks(masks, image, width, height)
    if mask is not None:
        check_lit(mask, model.latent_scale)
    return Source(strength, pixels, mask=mask, paste_back=values["paste_back"]), width, height


def _read_latents(values: Mapping[str, Any], model: Model, strength: float) -> tuple[Source, int, int]:
    """A source of latents, and the width and height in pixels that they stand for."""
    latents = values["latents"]
    if latents.ndim != 4 or latents.shape[1] != model.latent_channels or not latents.size:
        raise RequestError(
            f"latents: shape {list(latents.shape)}; they must be (images, {model.latent_channels}, height, width)"
        )
    if not np.isfinite(latents).all():
        raise RequestError("latents: they hold NaN or infinity; nothing can be drawn from them")
    width, height = latents.shape[3] * model.latent_scale, latents.shape[2] * model.latent_scale
    if (_or_default(values["width"], width), _or_default(values["height"], height)) != (width, height):
        raise RequestError(f"width, height: the latents are those of {width} x {height} pixels; leave both out")
    return Source(strength, latents=latents), width, height


def _check_source_count(source: Source, count: int) -> None:
    for name, arrays in (("image", source.pixels), ("latents", source.latents), ("mask", source.mask)):
        if arrays is not None:
            check_count(name, arrays, count, "picture")


def _micro_conditioning(values: Mapping[str, Any]) -> tuple[MicroConditioning, MicroConditioning | None]:
    """The micro-conditioning of the prompts, and that of the negative rows if it differs."""
    positive = MicroConditioning(
        values["original_size"], values["crop"], values["target_size"], values["aesthetic_score"]
    )
    negative, score = values["negative_conditioning"], values["negative_aesthetic_score"]
    if score is not None:
        negative = replace(negative or positive, aesthetic_score=score)
    return positive, negative
