"""The interface between a build and its builders: the job of one component, its result, and progress events."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.specs import ComponentSpec, Precision


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """The state of a build, sent when a component begins, on each of its phases, and when it is done.

    `number` and `count` refer to the components that must be built; `seconds_left` is an estimate for all of them.
    """

    component: str
    number: int
    count: int
    phase: str
    seconds: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Job:
    """One component to build from the ONNX file `onnx` as `folder/<stem>.<suffix>`; `folder` is empty.

    `report` is called with the name of each phase as it begins. `float32_layers`: how many convolutions, matmuls and
    attentions the export left in float32, because lower precisions overflow there. `options` are those of this engine,
    with defaults filled in.
    """

    spec: ComponentSpec
    precision: Precision
    onnx: Path
    folder: Path
    stem: str
    report: Callable[[str], None] = field(default=lambda phase: None)
    float32_layers: int = 0
    options: BuildOptions = field(default_factory=BuildOptions)


@dataclass(frozen=True, slots=True)
class Built:
    """The files written to the job's folder, beginning with the one to load; layers counted as `TYPE dtype`; notes."""

    files: tuple[str, ...]
    layers: Mapping[str, int]
    notes: tuple[str, ...] = ()


class Builder(Protocol):
    """Builds engines with the library of one backend, for one target."""

    def build(self, job: Job) -> Built:
        """Build one component.

        Raises:
            BuildError: the network cannot be parsed or built, or does not match the spec.
            PrecisionError: it would run in another precision than the requested one.
        """
