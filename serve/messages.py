"""What the HTTP front and the worker process say to each other.

Messages travel as pickles between two processes of the same installation. Times are spans in seconds, since clocks of
processes need not agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.record.metadata import Metadata

FailureKind = Literal["request", "numerics", "deadline", "worker"]
"""Why there is no picture: the request is not served, its values overflowed, its time is up, or the worker died."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Draw this. `settings` are those of `Pipeline.generate`, pictures decoded already.

    `seconds`: the time after which nobody waits any more; None has no end. `previews`: how many previews to send while
    it is drawn.
    """

    id: str
    model: str
    prompt: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False)
    seconds: float | None = None
    previews: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Let a request leave at the next step boundary. One that is not known, or done, is left alone."""

    id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process; what is still there is dropped."""


ToWorker = Submit | Cancel | Stop


@dataclass(frozen=True, slots=True)
class ModelNote:
    """A model that the worker serves, the ranges of its build as (min, usual, max), and the LoRAs loaded into it."""

    name: str
    family: str
    native_size: int
    weights_sha256: str
    precision: str
    backend: str
    device: str
    sampler: str
    steps: int
    guidance: float
    inpainting: bool
    ranges: Mapping[str, tuple[int, int, int]]
    loras: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """Every model is loaded."""

    models: tuple[ModelNote, ...]
    pid: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A bundle cannot be loaded; the process ends. `kind`: the error's class, one of `latentrt.runtime.errors`."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request was read and is served: what was decided where it left something open. `steps`: U-Net evaluations."""

    id: str
    steps: int
    pictures: int
    width: int
    height: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """A request takes part in the batches from now on. `seconds`: how long it had waited."""

    id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Stepped:
    """One step was done: of which lane, with how many pictures, how long it took, and how far each request is.

    `lanes`, `waiting`: lanes with requests, and requests not begun. `joined`, `left`: requests that came into the batch
    since the last step, and went.
    """

    lane: str
    pictures: int
    seconds: float
    done: Mapping[str, int]
    lanes: int
    waiting: int
    joined: int = 0
    left: int = 0


@dataclass(frozen=True, slots=True)
class Preview:
    """What a request's pictures look like so far, one pixel per latent."""

    id: str
    step: int
    pictures: tuple[Image.Image, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Finished:
    """A request's pictures, or its latents alone if that was asked for. `seconds`: by stage."""

    id: str
    pictures: tuple[Image.Image, ...] = field(repr=False)
    latents: Float32s | None = field(repr=False)
    seconds: Mapping[str, float]
    metadata: Metadata = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """A request ends without pictures."""

    id: str
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A request has left, as was asked."""

    id: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of the worker process, in bytes."""

    resident: int


FromWorker = Ready | LoadFailed | Accepted | Started | Stepped | Preview | Finished | Failed | Cancelled | Memory
