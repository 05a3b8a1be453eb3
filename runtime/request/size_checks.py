"""Checks of a request against a build's limits. The errors name the command that would build for more."""

from collections.abc import Callable

from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.kinds import Kind, is_whole

Rebuild = Callable[[Limits], str]
"""Gives the command that would build engines for other limits."""

TOKENS = Kind(
    f"a multiple of {TOKENS_PER_CHUNK}, or 0",
    lambda value: is_whole(value, 0) and int(value) % TOKENS_PER_CHUNK == 0,
    int,
)
"""Kind of value that a least number of tokens is."""


def _check_step(limits: Limits, name: str, value: int) -> None:
    step = limits.STEP[name]
    if value % step:
        near = _nearest(limits, name, value)
        which = f"nearest are {near[0]} and {near[1]}" if len(near) > 1 else f"nearest that is served is {near[0]}"
        raise RequestError(f"{name} {value}: must be a multiple of {step}; the {which}")


def _check_range(limits: Limits, rebuild: Rebuild, name: str, value: int) -> None:
    _check_step(limits, name, value)
    low, opt, high = limits.bounds(name)
    step = limits.STEP[name]
    if not low <= value <= high:
        wider = limits.replace(**{name: f"{min(low, value)}:{opt}:{max(high, value)}"})
        steps = f" in steps of {step}" if step > 1 and low < high else ""
        served = f"{low} to {high}{steps}" if low < high else f"{low} only"
        raise RequestError(f"{name} {value}: this build serves {served}. Rebuild with: {rebuild(wider)}")


def _nearest(limits: Limits, name: str, value: int) -> list[int]:
    """The values next to one that is no multiple of its step, among those that are served."""
    low, _, high = limits.bounds(name)
    step = limits.STEP[name]
    return sorted({min(max(value // step * step + more, low), high) for more in (0, step)})


def check_size(width: int, height: int, limits: Limits, rebuild: Rebuild) -> None:
    """Raise `RequestError` if pictures of this size are not served."""
    if limits.profiles:
        _check_step(limits, "width", width)
        _check_step(limits, "height", height)
        if not limits.serves_size(width, height):
            served = ", ".join(map(str, limits.profiles))
            more = limits.replace(profiles=(*limits.profiles, f"{width}x{height}"))
            raise RequestError(f"size {width}x{height}: this build serves {served}. Rebuild with: {rebuild(more)}")
        return
    _check_range(limits, rebuild, "width", width)
    _check_range(limits, rebuild, "height", height)


def check_images(count: int, limits: Limits, rebuild: Rebuild) -> None:
    """Raise `RequestError` if a batch of so many pictures is not served."""
    _check_range(limits, rebuild, "images", count)


def check_rows(rows: int, limits: Limits, rebuild: Rebuild) -> None:
    """Raise `RequestError` for more rows of the U-Net at once than are served: two per picture of the largest batch.

    A build without guidance serves one per picture.
    """
    low, opt, high = limits.bounds("images")
    branches = 1 if limits.guidance == "off" else 2
    if rows > branches * high:
        wider = limits.replace(images=f"{low}:{opt}:{-(-rows // branches)}")
        raise RequestError(
            f"prompt: its parts, joined by AND, make {rows} rows of the U-Net at once; this build serves "
            f"{branches * high}. "
            f"Rebuild with: {rebuild(wider)}"
        )


def check_tokens(tokens: int, limits: Limits, rebuild: Rebuild, prompt: str) -> None:
    """Raise `RequestError` if a prompt needs more tokens (77 per chunk) than are served."""
    low, opt, high = limits.bounds("tokens")
    if tokens > high:
        wider = limits.replace(tokens=f"{low}:{opt}:{tokens}")
        chunks, most = tokens // limits.STEP["tokens"], high // limits.STEP["tokens"]
        start = prompt if len(prompt) <= 30 else f"{prompt[:30]}…"
        raise RequestError(
            f"prompt {start!r}: it needs {chunks} chunks of 75 tokens, this build serves up to {most}. "
            f"Shorten it, or rebuild with: {rebuild(wider)}"
        )


def check_guidance(with_rows: bool, without_rows: bool, limits: Limits, rebuild: Rebuild) -> None:
    """Raise `RequestError` if steps with negative rows, or steps without them, are asked for and not served."""
    if (limits.guidance == "off" and with_rows) or (limits.guidance == "on" and without_rows):
        served = {
            "off": "no guided requests. Ask for guidance 1",
            "on": "guided steps alone. Ask for guidance above 1 for every prompt, on all steps",
        }[limits.guidance]
        command = rebuild(limits.replace(guidance="any"))
        raise RequestError(f"guidance: this build serves {served}, or rebuild with: {command}")
