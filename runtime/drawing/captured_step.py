"""One step of the denoising loop, captured once per set of sizes and replayed."""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from latentrt.runtime.backends import Backend, Buffer, Engine
from latentrt.runtime.backends.call import fetch_all
from latentrt.runtime.backends.chained import bind_parts
from latentrt.runtime.bundle.unet_parts import BODY, PROLOGUE, WHOLE
from latentrt.runtime.drawing.batch import Arrays
from latentrt.runtime.lora.bank import LoraBank

CARRIED = ("state", "step", "failed")
"""The sampler's inputs that are its outputs of the step before; those are called `next_` and the name."""


class CapturedStep:
    """U-Net and sampler bound to one set of sizes; `run` replays one step of both.

    A U-Net may be split into a prologue, which runs once per batch of prompts, and a body, which reads the prologue's
    outputs in place.
    """

    def __init__(self, backend: Backend, engines: Mapping[str, Engine], sizes: Mapping[str, int], loras: LoraBank):
        parts = [engines[name] for name in ((PROLOGUE, BODY) if PROLOGUE in engines else (WHOLE,))]
        computed = {port.name for part in parts for port in part.spec.outputs}
        inputs = [port for engine in (*parts, engines["sampler"]) for port in engine.spec.inputs]
        slots = {name: buffer for part in parts for name, buffer in loras.buffers(part.spec.name).items()}
        own = [port for port in inputs if port.name not in computed | slots.keys()]
        self._inputs = backend.block(own, sizes)
        shared = {**self._inputs.buffers, **slots}
        self.buffers: dict[str, Buffer] = dict(self._inputs.buffers)
        self._prologue: Callable[[], None] | None = None
        if PROLOGUE in engines:
            prologue, unet = bind_parts(parts[0], parts[1], sizes, shared)
            self.buffers |= prologue.buffers
            self._prologue = backend.record(prologue.run)
        else:
            unet = engines[WHOLE].bind(sizes, shared)
        sampler = engines["sampler"].bind(sizes, {**self._inputs.buffers, "noise_pred": unet.buffers["noise_pred"]})
        self.buffers |= {**unet.buffers, **sampler.buffers}
        carried = [(sampler.buffers[name], sampler.buffers[f"next_{name}"]) for name in CARRIED]

        def step() -> None:
            unet.run()
            sampler.run()
            for target, source in carried:
                target.copy_from(source)

        self.run = backend.record(step)

    def upload(self, arrays: Arrays) -> None:
        """Write every input, and run the prologue, if there is one."""
        self._inputs.write(arrays)
        if self._prologue is not None:
            self._prologue()

    def fetch(self, *names: str) -> dict[str, NDArray[Any]]:
        """The values of some buffers, after all steps so far; the host waits once."""
        return fetch_all({name: self.buffers[name] for name in names})()
