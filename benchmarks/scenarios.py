"""The list of scenarios: model, sizes, steps, batch, sampler, precision, and who takes part."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.errors import BenchmarkError

Kind = Literal["pictures", "component", "build", "host"]
"""A whole request; one component alone; building engines; the host's own work per step."""

Axis = Literal["", "steps", "images", "size"]
"""The quantity that grows from point to point, if one does."""

Device = Literal["cpu", "cuda"]

SIZES = ("width", "height", "images")
"""The fields of a point that engines are built for."""


@dataclass(frozen=True, slots=True)
class Point:
    """One request: pixels, U-Net evaluations, pictures in the batch."""

    width: int
    height: int
    steps: int = 20
    images: int = 1
    guidance: float = 5.0

    def __str__(self) -> str:
        batch = f", {self.images} pictures" if self.images > 1 else ""
        return f"{self.width}×{self.height}, {self.steps} step{'s' if self.steps > 1 else ''}{batch}"

    def along(self, axis: Axis) -> int:
        """The point's coordinate on a scaling curve."""
        return {"steps": self.steps, "images": self.images, "size": self.width, "": 0}[axis]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question, and the measurements that answer it.

    `rounds`: timed requests of each contender at each point. `component`: the one to run, if `kind` says so.
    `reference`: the device on which diffusers draws the picture to compare with, if it is not the scenario's.
    """

    name: str
    question: str
    model: str
    points: tuple[Point, ...]
    contenders: tuple[str, ...]
    precision: Precision = "fp32"
    device: Device = "cpu"
    rounds: int = 7
    kind: Kind = "pictures"
    axis: Axis = ""
    sampler: str = "euler"
    component: str = ""
    reference: Device | None = None

    @property
    def reference_device(self) -> Device:
        """The device on which diffusers draws the picture to compare with."""
        return self.reference or self.device

    def point_sizes(self) -> dict[str, tuple[int, ...]]:
        """Every width, height and batch size that the points ask for."""
        return {name: tuple(getattr(point, name) for point in self.points) for name in SIZES}


EVERYONE = ("latentrt", "diffusers", "diffusers-compile", "optimum")
EVERYONE_GPU = (
    "latentrt",
    "latentrt-tensorrt",
    "latentrt-tensorrt-rtx",
    "diffusers",
    "diffusers-compile",
    "optimum",
    "stable-fast",
)
ONE_COMPONENT_GPU = EVERYONE_GPU[:5]
"""Contenders that can run one component alone."""

PAIR = ("latentrt", "diffusers")
FORMS = (
    "latentrt",
    "latentrt-tensorrt",
    "latentrt-tensorrt-static",
    "latentrt-tensorrt-rtx",
    "latentrt-tensorrt-rtx-static",
)
"""latentrt with engines for ranges of sizes and for one size; ONNX Runtime's engines do not depend on sizes."""


def _square(size: int, steps: int = 20, images: int = 1, guidance: float = 5.0) -> Point:
    return Point(size, size, steps, images, guidance)


def _scaling(
    model: str,
    size: int,
    steps: int,
    sizes: tuple[int, ...],
    *,
    contenders: tuple[str, ...] = PAIR,
    rounds: int = 3,
    prefix: str = "",
    precision: Precision = "fp32",
    device: Device = "cpu",
    steps_curve: tuple[int, ...] = (1, 2, 5, 10, 20, 50),
) -> tuple[Scenario, ...]:
    """Three curves of one model: over steps, batch size and picture size."""

    def curve(axis: Axis, question: str, points: Iterable[Point]) -> Scenario:
        name = f"{prefix or model}-{axis}"
        return Scenario(name, question, model, tuple(points), contenders, precision, device, rounds, axis=axis)

    return (
        curve("steps", "How does the time grow with the steps?", (_square(size, count) for count in steps_curve)),
        curve("images", "What does a picture cost in a batch?", (_square(size, steps, n) for n in (1, 2, 4, 8))),
        curve("size", "How does the time grow with the size?", (_square(pixels, steps) for pixels in sizes)),
    )


def _builds(name: str, model: str, size: int, precision: Precision = "fp32", device: Device = "cpu") -> Scenario:
    question = "How long do engines take to build, how large are they, for fixed sizes and for ranges?"
    return Scenario(name, question, model, (_square(size),), FORMS, precision, device, rounds=1, kind="build")


def _host(name: str, steps: tuple[int, int], rounds: int = 7) -> Scenario:
    question = "How long does the host itself work per step, when the networks take no time?"
    points = tuple(_square(96, count) for count in steps)
    return Scenario(name, question, "demo", points, PAIR, rounds=rounds, kind="host")


def _component_gpu(name: str, question: str, model: str, component: str) -> Scenario:
    points = (_square(1024, 1),)
    return Scenario(
        name, question, model, points, ONE_COMPONENT_GPU, "fp16", "cuda", kind="component", component=component
    )


QUICK = (
    Scenario(
        "demo-quick",
        "A whole request of the checkpoint that ships: who is how fast?",
        "demo",
        (_square(96, 10),),
        EVERYONE,
    ),
    Scenario(
        "sdxl-50m-quick",
        "A small SDXL with random weights, a few steps: who is how fast?",
        "sdxl-50m",
        (_square(256, 4),),
        ("latentrt", "diffusers", "optimum"),
        rounds=3,
    ),
    *_scaling("demo", 96, 4, (64, 96, 128, 160), prefix="demo-quick", rounds=2, steps_curve=(1, 5, 20)),
    _builds("demo-quick-build", "demo", 96),
    _host("demo-quick-host", (300, 500), rounds=3),
)

CPU = (
    Scenario(
        "sdxl-50m",
        "A small SDXL with random weights on this CPU: who is how fast?",
        "sdxl-50m",
        (_square(256, 20),),
        EVERYONE,
    ),
    Scenario(
        "demo",
        "The checkpoint that ships, as `latentrt demo` draws it: who is how fast?",
        "demo",
        (_square(96, 20),),
        EVERYONE,
    ),
    *_scaling("sdxl-50m", 256, 4, (128, 192, 256, 320, 384)),
    _builds("sdxl-50m-build", "sdxl-50m", 256),
    _host("host", (600, 1000)),
)

SDXL_BASE = Scenario(
    "sdxl-base",
    "SDXL base at its own size, fp16: who is how fast?",
    "sdxl-base",
    (_square(1024, 30),),
    EVERYONE_GPU,
    "fp16",
    "cuda",
)
DEMO_GPU = Scenario(
    "demo-gpu",
    "The checkpoint that ships, fp16 on the GPU: does it draw the pictures that the CPU draws in float32?",
    "demo",
    (_square(96, 20),),
    EVERYONE_GPU,
    "fp16",
    "cuda",
    reference="cpu",
)
GPU_QUICK = (DEMO_GPU, SDXL_BASE)

GPU = (
    *GPU_QUICK,
    *_scaling(
        "sdxl-base",
        1024,
        30,
        (512, 768, 1024, 1280, 1536),
        precision="fp16",
        device="cuda",
        steps_curve=(1, 4, 10, 20, 30, 50),
    ),
    Scenario(
        "sdxl-base-profiles",
        "What do ranges of sizes cost against engines for one size?",
        "sdxl-base",
        (_square(1024, 30),),
        FORMS,
        "fp16",
        "cuda",
    ),
    _builds("sdxl-base-build", "sdxl-base", 1024, "fp16", "cuda"),
    _component_gpu("sdxl-vae", "The VAE's decoder alone, fp16: who is how fast?", "sdxl-base", "vae_decoder"),
    _component_gpu(
        "sdxl-refiner-unet",
        "One evaluation of the refiner's U-Net, two rows, fp16: who is how fast?",
        "sdxl-refiner",
        "unet",
    ),
    Scenario(
        "sd15",
        "Stable Diffusion 1.5 at its own size, fp16: who is how fast?",
        "sd15",
        (_square(512, 50, guidance=7.5),),
        EVERYONE_GPU,
        "fp16",
        "cuda",
    ),
    _host("host-gpu", (600, 1000)),
)

SUITES = {"quick": QUICK, "cpu": CPU, "gpu-quick": GPU_QUICK, "gpu": GPU}

REHEARSAL_MODEL = "demo"
REHEARSAL_SIZES = {512: 48, 768: 72, 1024: 96, 1280: 120, 1536: 144, 96: 96}
"""The demo's size for each size of the GPU scenarios, in pixels."""


def named(names: Iterable[str], suite: Iterable[Scenario]) -> tuple[Scenario, ...]:
    """The scenarios with these names, from any suite; all of `suite` if no name is given.

    Raises:
        BenchmarkError: no scenario has that name.
    """
    everything = {scenario.name: scenario for scenarios in SUITES.values() for scenario in scenarios}
    wanted = list(names)
    for name in wanted:
        if name not in everything:
            raise BenchmarkError(f"--scenario {name}: unknown. The scenarios are {', '.join(everything)}")
    return tuple(everything[name] for name in wanted) or tuple(suite)


def rehearsed(scenario: Scenario) -> Scenario:
    """A GPU scenario in small: the demo checkpoint in fp32 on the CPU, few steps, at most two rounds."""
    points = tuple(
        replace(
            point,
            width=REHEARSAL_SIZES[point.width],
            height=REHEARSAL_SIZES[point.height],
            steps=point.steps if scenario.kind == "host" else min(point.steps, 3),
            images=min(point.images, 2),
        )
        for point in scenario.points
    )
    return replace(
        scenario,
        model=REHEARSAL_MODEL,
        points=tuple(dict.fromkeys(points)),
        precision="fp32",
        device="cpu",
        reference=None,
        rounds=min(scenario.rounds, 2),
    )
