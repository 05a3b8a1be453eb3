"""Who takes part in a benchmark: latentrt in every form, and the peers."""

from dataclasses import dataclass
from importlib.util import find_spec

from latentrt.runtime.errors import BenchmarkError

OPTIMUM_PACKAGES = (
    "optimum-onnx[onnxruntime]>=0.1,<0.2",
    "diffusers>=0.35,<0.36",
    "transformers>=4.57,<4.58",
    "torch>=2.13,<2.14",
    "onnxruntime>=1.31,<1.32",
    "accelerate>=1,<2",
)
"""optimum-onnx needs a transformers older than ours, and so an environment of its own."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to draw a picture.

    `worker`: `module:class` below this package. `options` go to the class's `load`. `backend`: for ours, the engines.
    `static`: for ours, engines for one size only. `own_environment`: its libraries exclude ours. `needs`: a module that
    must be installed beside ours. `devices`: where it can run at all.
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
        """Whether it is not latentrt."""
        return not self.backend


def _ours(name: str, label: str, backend: str = "onnxruntime", static: bool = False, needs: str = "") -> Contender:
    devices = ("cpu", "cuda") if backend == "onnxruntime" else ("cuda",)
    install = f"pip install 'latentrt[{backend}]'" if needs else ""
    return Contender(
        name, label, "workers.ours:Latentrt", (), backend, static, needs=needs, devices=devices, install=install
    )


CONTENDERS = {
    contender.name: contender
    for contender in (
        _ours("latentrt", "latentrt"),
        _ours("latentrt-tensorrt", "latentrt, TensorRT", "tensorrt", needs="tensorrt"),
        _ours("latentrt-tensorrt-static", "latentrt, TensorRT, one size", "tensorrt", True, "tensorrt"),
        _ours("latentrt-tensorrt-rtx", "latentrt, TensorRT-RTX", "tensorrt-rtx", needs="tensorrt_rtx"),
        _ours("latentrt-tensorrt-rtx-static", "latentrt, TensorRT-RTX, one size", "tensorrt-rtx", True, "tensorrt_rtx"),
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
    """Peers from what the user wrote: None for the default ones, `all`, `none`, or names with commas between.

    Raises:
        BenchmarkError: a name is no peer's.
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
    """Raise `BenchmarkError` where a contender of our own environment lacks its library."""
    if contender.needs and find_spec(contender.needs) is None:
        raise BenchmarkError(f"{contender.name}: {contender.needs} is not installed. Get it with: {contender.install}")
