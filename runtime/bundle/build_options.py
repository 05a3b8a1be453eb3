"""Options of a build: how hard TensorRT searches for fast kernels, and on how many streams an engine may run."""

from typing import Literal

from latentrt.runtime.bundle.base import Record
from latentrt.runtime.bundle.unet_parts import BODY, WHOLE
from latentrt.runtime.errors import RequestError

Tiling = Literal["none", "fast", "moderate", "full"]
"""How long TensorRT searches for ways to keep the tensors between kernels in the L2 cache."""

RANGES = {"optimization_level": (0, 5), "timing_iterations": (1, 100), "aux_streams": (0, 7)}
"""Smallest and largest value of the numbers."""

HEAVY = frozenset({WHOLE, BODY, "vae_decoder"})
"""Engines in which a request spends nearly all of its time."""


class BuildOptions(Record):
    """What TensorRT's builder is told; None stands for the default of each engine, see `for_engine`."""

    optimization_level: int | None = None
    """0 to 5. From 4 on, kernels are always compiled for the network; 5 compares them with precompiled ones."""
    timing_iterations: int | None = None
    """How often each kernel is timed, for an average."""
    tiling: Tiling | None = None
    aux_streams: int | None = None
    """How many further streams an engine may use for operators that can run in parallel."""

    def model_post_init(self, _context: object, /) -> None:
        """Raise `RequestError` where a number is out of its range."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name.replace('_', ' ')} {value}: must be {low} to {high}")

    @property
    def given(self) -> dict[str, str]:
        """The options that are not left to the default, as the command line writes them."""
        values = self.model_dump(exclude_none=True)
        return {f"--{name.replace('_', '-')}": str(value) for name, value in values.items()}

    def for_engine(self, engine: str) -> "BuildOptions":
        """These options with every default filled in.

        The U-Net's body and the decoder are searched longer, with kernels timed four times each, as the other engines
        run once per request for a few milliseconds. All have one stream: a captured step is then one line of kernels,
        and activation memory is not split between streams.
        """
        defaults = HEAVY_DEFAULTS if engine in HEAVY else OTHER_DEFAULTS
        return defaults.model_copy(update=self.model_dump(exclude_none=True))

    def __str__(self) -> str:
        named = {name.replace("_", " "): value for name, value in self.model_dump(exclude_none=True).items()}
        return ", ".join(f"{name} {value}" for name, value in named.items())


HEAVY_DEFAULTS = BuildOptions(optimization_level=4, timing_iterations=4, tiling="fast", aux_streams=0)
OTHER_DEFAULTS = BuildOptions(optimization_level=3, timing_iterations=1, tiling="none", aux_streams=0)
