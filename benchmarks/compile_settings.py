"""Compares settings of torch.compile on the CPU: the U-Net of a checkpoint under each of them, in turns.

    python benchmarks/compile_settings.py CHECKPOINT [--size PIXELS] [--runs N] [--threads N]

The suite's contender `diffusers-compile` uses channels-last and freezing on CPUs. Prints a table (milliseconds per
evaluation of two rows; ratio to eager, run by run) and one JSON line at the end.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch

from latentrt.benchmarks.harness import in_turns
from latentrt.benchmarks.summary import ratios, summarise
from latentrt.benchmarks.workers.torch_pipeline import load_pipeline

SETTINGS: dict[str, tuple[bool, dict[str, Any] | None]] = {
    "eager": (False, None),
    "eager, channels-last": (True, None),
    "compiled": (False, {}),
    "compiled, channels-last": (True, {}),
    "compiled, freezing": (False, {"freezing": True}),
    "compiled, channels-last, freezing": (True, {"freezing": True}),
    "compiled, channels-last, freezing, autotuned": (True, {"freezing": True, "max_autotune": True}),
}
"""For each setting, whether weights are channels-last, and the compiler's options (None: not compiled)."""


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = load_pipeline(arguments.checkpoint, "fp32", "euler")
    inputs = unet_inputs(pipeline, arguments.size)
    variants, first = {}, {}
    for name, (channels_last, options) in SETTINGS.items():
        variants[name] = prepared(pipeline.unet, channels_last, options)
        first[name] = seconds(variants[name], inputs)
        print(f"{name}: first run {first[name]:.1f} s", flush=True)
        seconds(variants[name], inputs)
    runs = {name: partial(seconds, variant, inputs) for name, variant in variants.items()}
    times = in_turns(runs, arguments.runs)
    report(times, first, vars(arguments) | {"torch": torch.__version__})


def unet_inputs(pipeline: Any, size: int) -> dict[str, Any]:
    """Random inputs of an SDXL U-Net: two rows, one chunk of prompt."""
    config = pipeline.unet.config
    side = size // pipeline.vae_scale_factor
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    draw = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, config.in_channels, side, side, generator=draw),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(2, 77, config.cross_attention_dim, generator=draw),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, pooled, generator=draw),
            "time_ids": torch.tensor([[size, size, 0, 0, size, size]] * 2, dtype=torch.float32),
        },
    }


def prepared(unet: Any, channels_last: bool, options: dict[str, Any] | None) -> Callable[..., Any]:
    """A copy of the network under one setting."""
    copy = deepcopy(unet).eval()
    if channels_last:
        copy = copy.to(memory_format=torch.channels_last)
    if options is None:
        return copy  # type: ignore[no-any-return]
    compiled: Callable[..., Any] = torch.compile(copy, fullgraph=True, options=options)
    return compiled


def seconds(network: Callable[..., Any], inputs: dict[str, Any]) -> float:
    """Seconds of one evaluation."""
    with torch.no_grad():
        started = time.perf_counter()
        network(**inputs)
        return time.perf_counter() - started


def report(times: dict[str, list[float]], first: dict[str, float], conditions: dict[str, Any]) -> None:
    """Print the table and the JSON line."""
    rows = {}
    for name, found in times.items():
        summary = summarise(found)
        rows[name] = {
            "median_ms": round(1e3 * summary.median, 1),
            "quartiles_ms": [round(1e3 * summary.lower, 1), round(1e3 * summary.upper, 1)],
            "ratio": round(statistics.median(ratios(found, times["eager"])), 3),
            "first_s": round(first[name], 1),
        }
        print(f"{name:46}", *(f"{key} {value}" for key, value in rows[name].items()), sep="  ")
    print(json.dumps({"conditions": conditions, "settings": rows}))


if __name__ == "__main__":
    main()
