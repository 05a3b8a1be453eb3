"""The body of our own API, from the declarations of the settings: their JSON Schema, and from JSON to Python values."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema, create_model

from latentrt.runtime import MicroConditioning, RequestError
from latentrt.runtime.request.kinds import LATENTS, MASK, PICTURE
from latentrt.runtime.request.micro_conditioning import CONDITIONING
from latentrt.runtime.request.setting import Setting
from latentrt.runtime.request.settings import SETTINGS, TYPES
from latentrt.runtime.request.signature import describe
from latentrt.serve.limits import ServerLimits
from latentrt.serve.pictures import decode_base64, read_latents, read_picture

BASE64 = {"type": "string", "contentEncoding": "base64"}


def _json_schema(name: str, setting: Setting) -> dict[str, Any]:
    """The JSON Schema of a setting; null means "not given"."""
    if setting.kind in (PICTURE, MASK):
        found: dict[str, Any] = {"anyOf": [BASE64, {"type": "array", "items": BASE64}, {"type": "null"}]}
    elif setting.kind is LATENTS:
        found = {"anyOf": [BASE64, {"type": "null"}], "description": "an .npy file"}
    else:
        found = TypeAdapter(TYPES[name] | None).json_schema()
        found = {key: value for key, value in found.items() if key != "$defs"}
        if setting.kind is CONDITIONING:
            found = {"anyOf": [{"type": "object"}, {"type": "null"}]}
    return found | {"description": describe(setting)}


def _field(name: str, setting: Setting) -> Any:
    return (Annotated[Any, WithJsonSchema(_json_schema(name, setting))], None)


class _Body(BaseModel):
    """What a request has beside its settings."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    prompt: str | list[str] = Field(description="What to draw; several texts are drawn as one batch.")
    model: str | None = Field(None, description="One of GET /v1/models; default: the first.")
    timeout: float | None = Field(
        None, gt=0, le=86400, description="Seconds after which nobody waits: the request then ends with an error."
    )
    previews: int = Field(0, ge=0, le=100, description="How many previews to make while drawing.")
    wait: bool = Field(False, description="Answer with the pictures; the request is cancelled if the client goes.")


Body: type[_Body] = create_model(
    "Body", __base__=_Body, **{name: _field(name, setting) for name, setting in SETTINGS.items()}
)
"""The body of `POST /v1/requests`. Values of settings are checked where requests are made, not here."""

OWN = frozenset(_Body.model_fields)


def prompts_of(body: _Body) -> tuple[str, ...]:
    """The body's texts."""
    return (body.prompt,) if isinstance(body.prompt, str) else tuple(body.prompt)


def settings_of(body: _Body, limits: ServerLimits) -> dict[str, Any]:
    """The settings that a body gives, unknown ones included, with pictures decoded."""
    given = {name: value for name, value in body if name not in OWN and value is not None}
    return read_settings_json(given | dict(body.model_extra or {}), limits)


def read_settings_json(given: Mapping[str, Any], limits: ServerLimits) -> dict[str, Any]:
    """Settings from JSON: base64 texts become pictures or latents, objects become `MicroConditioning`.

    Raises:
        RequestError: a picture or an array cannot be read.
    """
    return {name: _python_value(name, value, limits) for name, value in given.items()}


def _python_value(name: str, value: Any, limits: ServerLimits) -> Any:
    kind = SETTINGS[name].kind if name in SETTINGS else None
    if kind is PICTURE or kind is MASK:
        texts = value if isinstance(value, list) else [value]
        if len(texts) > limits.pictures:
            raise RequestError(f"{name}: {len(texts)} pictures; this server takes up to {limits.pictures}")
        pictures = [read_picture(name, decode_base64(name, text), limits) for text in texts]
        return pictures if isinstance(value, list) else pictures[0]
    if kind is LATENTS:
        return read_latents(decode_base64(name, value), limits)
    if kind is CONDITIONING and isinstance(value, dict):
        try:
            return MicroConditioning(**value)
        except TypeError as error:
            raise RequestError(f"{name}: {error}; it takes original, crop, target and aesthetic_score") from error
    return value
