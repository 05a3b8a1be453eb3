"""What one request may ask of a server, whatever the build would serve."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latentrt.runtime import Request, RequestError

TEXTS = ("negative", "prompt_2", "negative_2")
"""Settings that are texts as the prompt is."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The most that one request may ask for.

    `body_bytes`: of an HTTP body. `pixels`: width times height, of pictures to draw and of pictures sent. `steps`:
    evaluations of the U-Net. `pictures`: of one request, and of lists of pictures sent. `prompt`: characters of a text.
    """

    body_bytes: int = 64 * 2**20
    pixels: int = 2048 * 2048
    steps: int = 200
    pictures: int = 16
    prompt: int = 10_000

    def check_texts(self, prompt: tuple[str, ...], settings: Mapping[str, Any]) -> None:
        """Raise `RequestError` for too many or too long texts, before one is tokenized."""
        if len(prompt) > self.pictures:
            raise RequestError(f"prompt: {len(prompt)} texts; this server draws up to {self.pictures} pictures at once")
        texts = [("prompt", text) for text in prompt]
        texts += [(name, text) for name in TEXTS for text in _texts(settings.get(name))]
        for name, text in texts:
            if len(text) > self.prompt:
                raise RequestError(f"{name}: {len(text)} characters; this server takes up to {self.prompt}. Shorten it")

    def check_sizes(self, settings: Mapping[str, Any]) -> None:
        """Raise `RequestError` for a size or number of pictures that is too large, before anything is resized."""
        width, height, images = (settings.get(name) for name in ("width", "height", "images"))
        if isinstance(width, int) and isinstance(height, int):
            self._check_pixels(width, height)
        if isinstance(images, int) and images > self.pictures:
            raise RequestError(f"images {images}: this server draws up to {self.pictures} pictures at once")

    def check(self, request: Request, evaluations: int) -> None:
        """Raise `RequestError` for a request that is too large."""
        self._check_pixels(request.width, request.height)
        if request.count > self.pictures:
            raise RequestError(f"{request.count} pictures: this server draws up to {self.pictures}. Ask for fewer")
        if evaluations > self.steps:
            raise RequestError(
                f"steps {request.steps}: {evaluations} evaluations of the U-Net; this server allows {self.steps}. Ask "
                "for fewer"
            )

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self.pixels:
            raise RequestError(
                f"width {width}, height {height}: {width * height} pixels; this server draws up to {self.pixels}. Ask "
                "for a smaller size"
            )


def check_loras(request: Request, loaded: Collection[str]) -> None:
    """Raise `RequestError` for a LoRA that is not loaded; clients of a server cannot load one."""
    for use in (use for mix in request.loras for use in mix):
        if use.name not in loaded:
            here = ", ".join(loaded) or "none"
            raise RequestError(f"loras: {use.name!r} is not loaded on this server; it has {here}")


def _texts(value: Any) -> Iterator[str]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    yield from (text for text in values if isinstance(text, str))
