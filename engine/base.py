"""What a builder gets and gives: one job per component, and the events that tell how a build is going."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from latentrt.runtime.bundle.specs import ComponentSpec, Precision


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """What is being built now. Sent when a component begins, on every phase of it, and when it is done.

    `number` of `count` counts only the components that must be built. `seconds_left` is an estimate for all of them.
    """

    component: str
    number: int
    count: int
    phase: str
    seconds: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Job:
    """One component to build: its ONNX file becomes `folder/<stem>.<suffix>`, in an empty folder of its own.

    `report` takes the name of the phase that begins. `float32_layers`: convolutions, matmuls and attentions that the
    export left in float32, because lower precisions overflow there.
    """

    spec: ComponentSpec
    precision: Precision
    onnx: Path
    folder: Path
    stem: str
    report: Callable[[str], None] = field(default=lambda phase: None)
    float32_layers: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """The files written to the job's folder, the one to load first, and what was seen in the network."""

    files: tuple[str, ...]
    layers: Mapping[str, int]
    notes: tuple[str, ...] = ()


class Builder(Protocol):
    """Builds engines with one library for one target."""

    def build(self, job: Job) -> Built:
        """Build one component.

        Raises:
            BuildError: the network cannot be parsed or built, or is not what the spec says.
            PrecisionError: it would run in another precision than the one asked for.
        """
