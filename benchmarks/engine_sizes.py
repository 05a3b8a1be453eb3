"""Measures what static, wide and multi-profile builds cost: seconds and bytes of TensorRT-RTX engines, in turns.

    python benchmarks/engine_sizes.py BUNDLE [--engine NAME] [--rounds N]

The bundle's own limits are the wide build. The others are static at its native size, with guided and unguided requests
or one kind alone, and have one profile for each of two to five sizes, alone or beside the wide range. Needs no GPU.

Prints a table (profiles, bytes, median seconds, ratios to the wide build) and one JSON line at the end.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from latentrt.benchmarks.harness import in_turns
from latentrt.benchmarks.summary import ratios
from latentrt.engine.base import Job
from latentrt.engine.split_unet import GraphFiles
from latentrt.engine.tensorrt import TensorRTBuilder
from latentrt.runtime.backends.targets import RTX_DEFAULT
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.unet_parts import PARTS, WHOLE

BACKEND = "tensorrt-rtx"
WIDE = "wide range"

SHAPES = ((1.0, 1.0), (0.8125, 1.1875), (1.1875, 0.8125), (0.75, 1.25), (1.25, 0.75))
"""Widths and heights over the native size, much as SDXL was trained with (Podell et al. 2023, appendix I)."""


def variants(limits: Limits, native: int) -> dict[str, Limits]:
    """The limits of each build."""
    sizes = [f"{_pixels(width * native)}x{_pixels(height * native)}" for width, height in SHAPES]
    square = {"width": str(native), "height": str(native), "images": "1", "tokens": "77", "vae_images": "1"}
    wide = f"{limits.width}x{limits.height}"
    return {
        WIDE: limits,
        "static, guided and unguided": limits.replace(**square),
        "static, guided": limits.replace(**square, guidance="on"),
        "2 sizes": limits.replace(profiles=sizes[:2]),
        "5 sizes": limits.replace(profiles=sizes),
        "1 size and the wide range": limits.replace(profiles=[sizes[0], wide]),
    }


def _pixels(size: float) -> int:
    return round(size / 8) * 8


def main() -> None:
    """Build every variant in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="unet_body", help="unet_body, vae_decoder, vae_encoder, ...")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    chosen = variants(bundle.manifest.limits, bundle.manifest.model.native_size)
    found: dict[str, tuple[int, int]] = {}
    builder = TensorRTBuilder(BACKEND, RTX_DEFAULT)
    with tempfile.TemporaryDirectory() as folder, GraphFiles(bundle, Path(folder) / "graphs", RTX_DEFAULT) as graphs:

        def build(name: str) -> Callable[[], float]:
            specs = bundle.manifest.specs(chosen[name])
            specs |= graphs.parts(specs[WHOLE]) if arguments.engine in PARTS else {}
            spec = specs[arguments.engine]
            precision = bundle.manifest.components[WHOLE if spec.name in PARTS else spec.name].precision
            file, float32 = graphs.file(spec.name), graphs.float32_layers(spec.name)

            def seconds() -> float:
                job = Job(spec, precision, file, Path(folder), "engine", float32_layers=float32)
                started = time.perf_counter()
                built = builder.build(job)
                took = time.perf_counter() - started
                found[name] = len(spec.profiles), (Path(folder) / built.files[0]).stat().st_size
                return took

            return seconds

        times = in_turns({name: build(name) for name in chosen}, arguments.rounds)
    report(found, times, vars(arguments))


def report(found: dict[str, tuple[int, int]], times: dict[str, list[float]], conditions: dict[str, object]) -> None:
    """Print the table and the JSON line."""
    rows = {}
    for name, (profiles, size) in found.items():
        rows[name] = {
            "profiles": profiles,
            "bytes": size,
            "bytes_ratio": round(size / found[WIDE][1], 3),
            "median_seconds": round(statistics.median(times[name]), 2),
            "seconds_ratio": round(statistics.median(ratios(times[name], times[WIDE])), 3),
        }
        print(f"{name:30}", *(f"{key} {value}" for key, value in rows[name].items()), sep="  ")
    print(json.dumps({"conditions": conditions, "variants": rows}))


if __name__ == "__main__":
    main()
