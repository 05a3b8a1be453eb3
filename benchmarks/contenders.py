"""Who takes part in a benchmark: latentrt in every form, and the peers."""

from dataclasses import dataclass
from importlib.util import find_spec

from latentrt.runtime.backends import BACKENDS
from latentrt.runtime.errors import BenchmarkError

OPTIMUM_PACKAGES = (
    "optimum-onnx[onnxruntime]>=0.1,<0.2",
    "diffusers>=0.35,<0.36",
    "transformers>=4.57,<4.58",
    "torch>=2.13,<2.14",
    "onnxruntime>=1.31,<1.32",
    "accelerate>=1,<2",
)
"""optimum-onnx needs an older transformers than latentrt, and therefore its own environment."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to draw a picture.

    `worker`: `module:class` within this package; `options` are passed to the class's `load`. `backend` and `static` are
    for latentrt: the backend of its engines, and whether they serve one size only. `own_environment`: its libraries
    conflict with latentrt's. `needs`: a module that must be installed. `devices`: devices that it supports. `install`:
    how to get it.
    """

    name: str
    label: str
    worker: str
    options: tuple[tuple[str, str | bool], ...] = ()
    backend: str = ""
    static: bool = False
    own_environment: bool = False
    needs: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    install: str = ""

    @property
    def is_peer(self) -> bool:
        """Whether it is something other than latentrt."""
        return not self.backend


LATENTRT = "workers.ours:Latentrt"


def _tensorrt(name: str, label: str, backend: str, static: bool = False) -> Contender:
    """The contender latentrt with engines of a TensorRT backend."""
    return Contender(
        name,
        label,
        LATENTRT,
        backend=backend,
        static=static,
        needs=BACKENDS[backend].module,
        devices=("cuda",),
        install=f"pip install 'latentrt[{BACKENDS[backend].extras[0]}]'",
    )


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("latentrt", "latentrt", LATENTRT, backend="onnxruntime"),
        _tensorrt("latentrt-tensorrt", "latentrt, TensorRT", "tensorrt"),
        _tensorrt("latentrt-tensorrt-static", "latentrt, TensorRT, one size", "tensorrt", static=True),
        _tensorrt("latentrt-tensorrt-rtx", "latentrt, TensorRT-RTX", "tensorrt-rtx"),
        _tensorrt("latentrt-tensorrt-rtx-static", "latentrt, TensorRT-RTX, one size", "tensorrt-rtx", static=True),
        Contender(
            "diffusers",
            "diffusers",
            "workers.torch_pipeline:Diffusers",
            needs="diffusers",
            install="pip install 'latentrt[bench]'",
        ),
        Contender(
            "diffusers-compile",
            "diffusers, torch.compile",
            "workers.torch_pipeline:Diffusers",
            (("compile", True),),
            needs="diffusers",
            install="pip install 'latentrt[bench]'",
        ),
        Contender(
            "optimum",
            "optimum-onnx",
            "workers.optimum_pipeline:Optimum",
            own_environment=True,
            install="latentrt bench --install-peers, or --peer-python optimum=/path/to/python",
        ),
        Contender(
            "stable-fast",
            "stable-fast",
            "workers.torch_pipeline:Diffusers",
            (("stable_fast", True),),
            needs="sfast",
            devices=("cuda",),
            install="a wheel for your torch and CUDA from stable-fast's releases",
        ),
    )
}
PEERS = tuple(name for name, contender in CONTENDERS.items() if contender.is_peer)
DEFAULT_PEERS = ("diffusers", "diffusers-compile")


def chosen_peers(text: str | None) -> tuple[str, ...]:
    """The peers chosen by the user: None for the default ones, `all`, `none`, or names separated by commas.

    Raises:
        BenchmarkError: there is no peer of that name.
    """
    if text is None:
        return DEFAULT_PEERS
    if text in ("all", "none"):
        return PEERS if text == "all" else ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in PEERS:
            raise BenchmarkError(f"--peers {name}: no such peer. The peers are {', '.join(PEERS)}, or all, or none")
    return names


def check_installed(contender: Contender) -> None:
    """Raise `BenchmarkError` if the module that a contender needs is not installed."""
    if contender.needs and find_spec(contender.needs) is None:
        raise BenchmarkError(f"{contender.name}: {contender.needs} is not installed. Get it with: {contender.install}")
