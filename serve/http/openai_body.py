"""Bodies of OpenAI's images API: what each parameter may be, by OpenAI's own rules."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from latentrt.runtime.request.settings import SETTINGS
from latentrt.serve.http.errors import ParameterError
from latentrt.serve.pictures import FORMATS, Format, has_alpha

CHOICES: Mapping[str, tuple[str, ...]] = {
    "response_format": ("b64_json", "url"),
    "output_format": FORMATS,
    "quality": ("auto", "low", "medium", "high", "standard", "hd"),
    "style": ("vivid", "natural"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "input_fidelity": ("high", "low"),
}
"""Parameters that take one of a few words."""

OTHERS = ("prompt", "model", "n", "size", "output_compression", "stream", "partial_images", "user", "safety_identifier")

THEIRS = frozenset({*OTHERS, *CHOICES})
"""OpenAI's parameters. `quality`, `style`, `moderation` and `user` change nothing here."""

OURS = frozenset(SETTINGS) - {"images", "width", "height", "image", "mask", "latents", "decode", "denoising_start"}
"""Settings that a body may hold beside them."""

MOST_PICTURES, MOST_PARTIAL = 10, 3
"""OpenAI's own bounds of `n` and `partial_images`."""


@dataclass(frozen=True, slots=True)
class Order:
    """A checked body. `size`: None for `auto`."""

    prompt: str
    model: str | None
    n: int
    size: tuple[int, int] | None
    as_url: bool
    format: Format
    quality: int
    stream: bool
    partial_images: int
    settings: Mapping[str, Any]


def read_order(given: Mapping[str, Any]) -> Order:
    """Check a body by OpenAI's rules.

    Raises:
        ParameterError: an unknown parameter, or a value that it does not take.
    """
    values = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(values.keys() - THEIRS - OURS):
        raise ParameterError(unknown[0], f"Unknown parameter: '{unknown[0]}'.", "unknown_parameter")
    prompt = values.get("prompt")
    if not isinstance(prompt, str):
        raise ParameterError("prompt", "Missing required parameter: 'prompt'." if prompt is None else "prompt: a text")
    for name, allowed in CHOICES.items():
        if values.get(name, allowed[0]) not in allowed:
            raise ParameterError(name, f"{name} {values[name]!r}: must be one of {', '.join(allowed)}")
    model, stream = values.get("model"), values.get("stream", False)
    if not isinstance(model, str | None):
        raise ParameterError("model", f"model {model!r}: must be a text")
    if not isinstance(stream, bool):
        raise ParameterError("stream", f"stream {stream!r}: must be true or false")
    return Order(
        prompt=prompt,
        model=model,
        n=_whole(values, "n", 1, 1, MOST_PICTURES),
        size=_size(values.get("size", "auto")),
        as_url=values.get("response_format") == "url",
        format=values.get("output_format", "png"),
        quality=_whole(values, "output_compression", 100, 0, 100),
        stream=stream,
        partial_images=_whole(values, "partial_images", 0, 0, MOST_PARTIAL),
        settings={name: value for name, value in values.items() if name in OURS},
    )


def _whole(values: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ParameterError(name, f"{name} {value!r}: must be a whole number from {least} to {most}")
    return value


def _size(value: object) -> tuple[int, int] | None:
    if value == "auto":
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", value) if isinstance(value, str) else None
    if match is None:
        raise ParameterError("size", f"size {value!r}: must be auto, or WIDTHxHEIGHT such as 1024x1024")
    return int(match[1]), int(match[2])


def typed(texts: Mapping[str, str]) -> dict[str, Any]:
    """A form's texts as JSON would have them: numbers and truth values where the parameter is no text."""
    as_text = {"prompt", "model", "size", "user", *CHOICES, *(n for n in OURS if SETTINGS[n].kind.text_type is str)}
    values: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            values[name] = text if name in as_text and name != "schedule" else json.loads(text)
        except ValueError:
            values[name] = text
    return values


def edit_settings(image: Image.Image, mask: Image.Image | None) -> dict[str, Any]:
    """The settings for a picture, and for a mask whose transparent part is edited.

    Raises:
        ParameterError: the mask has no transparency, or another size.
    """
    if mask is not None and not has_alpha(mask):
        raise ParameterError("mask", "mask: it has no alpha channel; its transparent part is what is edited")
    if mask is not None and mask.size != image.size:
        raise ParameterError("mask", f"mask: {mask.size}, the image has {image.size}; make them the same size")
    holder = mask if mask is not None else image
    settings: dict[str, Any] = {"image": image.convert("RGBA").convert("RGB")}
    if has_alpha(holder):
        alpha = holder.convert("RGBA").getchannel("A")
        if mask is not None or any(alpha.histogram()[:128]):
            settings |= {"mask": alpha.point(lambda level: 255 if level < 128 else 0), "paste_back": True}
    return settings


def _schema(kind: str, required: list[str], **fields: Any) -> dict[str, Any]:
    """A body as OpenAPI has it."""
    words = {name: {"type": "string", "enum": list(allowed)} for name, allowed in CHOICES.items()}
    shared = {"prompt": {"type": "string"}, "model": {"type": "string"}, "size": {"type": "string"}}
    counts = {name: {"type": "integer"} for name in ("n", "partial_images", "output_compression")}
    properties = {**shared, **counts, **words, "stream": {"type": "boolean"}, **fields}
    schema = {"type": "object", "required": required, "properties": properties}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


FILE = {"type": "string", "format": "binary"}

GENERATIONS = _schema("application/json", ["prompt"])
EDITS = _schema("multipart/form-data", ["prompt", "image"], image=FILE, mask=FILE)
