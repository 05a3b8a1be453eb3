"""Measures what room for LoRAs costs on the CPU: a step for each rank, in turns in one process, and loading.

    python benchmarks/lora_cost.py BUNDLE [--ranks 0 16 64 128] [--size PIXELS] [--runs N]

Prints one line per rank: milliseconds per step of the whole loop (median), the ratio to the engine without room, run by
run (median and quartiles), and milliseconds to load a LoRA that fills the room. The builds go into a copy of the
bundle's manifest and ONNX files, which is removed afterwards.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from latentrt.benchmarks.harness import in_turns
from latentrt.benchmarks.summary import ratios
from latentrt.engine.build import build_engines
from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import link_or_copy
from latentrt.runtime.bundle.lora_slots import DOWN, UP, LoraSlots

STEPS = 8
"""Steps of a measured call: enough that the upload of the batch does not count."""


def main() -> None:
    """Measure every rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 16, 64, 128])
    parser.add_argument("--size", type=int, default=0, help="pixels; default: the bundle's own")
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    original = Bundle.open(arguments.bundle)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in ["manifest.json", *original.manifest.files]:
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(original.path / name, target)
        size = arguments.size or original.manifest.model.native_size
        loading: dict[int, float] = {}
        calls: dict[str, Callable[[], float]] = {}
        for rank in arguments.ranks:
            record = build_engines(Bundle.open(folder), "onnxruntime", lora=LoraSlots(rank=rank) if rank else None)
            pipe = stack.enter_context(Pipeline.load(folder, "onnxruntime", "cpu", build=record.name))
            if rank:
                file = fill(pipe, rank, Path(folder) / f"rank-{rank}.safetensors")
                started = time.perf_counter()
                pipe.load_lora(file, "full")
                loading[rank] = time.perf_counter() - started
            calls[str(rank)] = partial(steps, pipe, size, {"full": 0.01} if rank else None)
        in_turns(calls, 1)
        report(in_turns(calls, arguments.runs), loading)


def steps(pipe: Pipeline, size: int, loras: dict[str, float] | None) -> float:
    """Seconds of the denoising of one request."""
    settings: Any = {"steps": STEPS, "width": size, "height": size, "seed": 0, "guidance": 5.0, "decode": False}
    return pipe.generate("a lake", loras=loras, **settings).timings["denoise"]


def fill(pipe: Pipeline, rank: int, file: Path) -> Path:
    """Write a LoRA of this rank for every layer of the U-Net that has room."""
    draw, tensors = np.random.default_rng(0), {}
    for engine in ("unet_prologue", "unet_body"):
        ports = {port.name: [axis.offset for axis in port.axes] for port in pipe.selection.specs[engine].inputs}
        for name in (name for name in ports if name.endswith(DOWN)):
            layer = name.removesuffix(DOWN)
            (inside, _), (_, out) = ports[name][-2:], ports[layer + UP][-2:]
            tensors[f"unet.{layer}.lora_A.weight"] = draw.standard_normal((rank, inside)).astype("f4") / inside
            tensors[f"unet.{layer}.lora_B.weight"] = draw.standard_normal((out, rank)).astype("f4") / rank
    save_file(tensors, file)
    return file


def report(taken: dict[str, list[float]], loading: dict[int, float]) -> None:
    """Print one line per rank."""
    first = next(iter(taken))
    for name, seconds in taken.items():
        low, middle, high = statistics.quantiles(ratios(seconds, taken[first]), n=4)
        loaded = f", loading {loading[int(name)] * 1e3:.0f} ms" if int(name) in loading else ""
        step = statistics.median(seconds) / STEPS * 1e3
        print(f"R = {name:>3}: {step:7.1f} ms per step, {middle:.2f} times ({low:.2f} to {high:.2f}){loaded}")


if __name__ == "__main__":
    main()
