"""latentrt's builder and runner on stand-ins of TensorRT's classes: what the tests of `unit/tensorrt` start from."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cuda_stand_in import StandInCuda
from graph_bundles import GRAPHS, LIMITS, MODEL
from tensorrt_stand_ins import StandInModule

from latentrt.engine import tensorrt as builder_module
from latentrt.runtime.backends import tensorrt as runner_module
from latentrt.runtime.backends.tensorrt import TensorRTBackend, TensorRTEngine
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import ComponentSpec

BACKENDS = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt_lean": "tensorrt", "tensorrt_bindings": "tensorrt"}
SIZES = {"vae_images": 1, "latent_height": 9, "latent_width": 16}


def decoder(limits: Limits = LIMITS) -> ComponentSpec:
    """The spec of the engine that is loaded."""
    return component_specs(MODEL, limits, dict.fromkeys(GRAPHS, "fp16"))["vae_decoder"]


class StandInTensorRT:
    """One TensorRT module whose classes are stand-ins, on a stand-in of CUDA.

    `stand_in` and `backend` are those of the last `use` and `open`. Calls to both libraries go to `gpu.calls`.
    """

    stand_in: StandInModule
    backend: TensorRTBackend

    def __init__(self, patch: pytest.MonkeyPatch, gpu: StandInCuda, module: ModuleType, folder: Path):
        self.module, self.gpu, self.folder = module, gpu, folder
        self.name = BACKENDS[module.__name__]
        self._patch = patch

    def use(self, **answers: Any) -> StandInModule:
        """Stand-ins with these answers, `Class__member=answer`, in place of the module."""
        named = {name.replace("__", "."): answer for name, answer in answers.items()}
        self.stand_in = StandInModule(self.module, named, self.gpu.calls)
        for place in (builder_module, runner_module):
            self._patch.setattr(place, "load_module", lambda _name: self.stand_in)
        return self.stand_in

    def open(self, *, spec: ComponentSpec | None = None, folder: Path | None = None, **answers: Any) -> TensorRTEngine:
        """A decoder's engine, loaded by a backend of its own from a build's folder."""
        spec, folder = spec or decoder(), folder or self.folder

        def shape(name: str) -> tuple[int, ...]:
            return next(port.shape(SIZES) for port in spec.ports if port.name == name)

        defaults = {"IExecutionContext__get_tensor_shape": shape, "IRuntimeCache__serialize": lambda: b"kernels"}
        self.use(**(defaults | answers))
        folder.mkdir(exist_ok=True)
        (folder / "decoder.engine").write_bytes(b"plan")
        self.backend = TensorRTBackend(self.name, "cuda:0")
        return self.backend.load(spec, folder / "decoder.engine")
