"""Fits the full-size SDXL VAE, with random weights scaled up until they overflow, to fp16; exports, builds, measures.

    /usr/bin/time -v python benchmarks/vae_fp16.py [CHECKPOINT] [--blow-up EXPONENT]

Prints one line for the encoder, one for the decoder, and one JSON line at the end: largest value before and after,
scales (smallest and largest exponent, number), float32 islands, fp16's error over the samples, share of multiplications
in fp16, heavy layers of TensorRT-RTX's network, seconds, processor seconds of the fit, and peak memory.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from latentrt.engine.base import Job
from latentrt.engine.network import HEAVY
from latentrt.engine.tensorrt import TensorRTBuilder
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.component import VAE
from latentrt.export.exporter import component_precisions
from latentrt.export.modules import wrap
from latentrt.export.numerics.islands import frame, to_fp16
from latentrt.export.numerics.vae_samples import vae_samples
from latentrt.export.numerics.vae_scaling import fit_vae_to_fp16, fold
from latentrt.export.numerics.vae_signals import vae_signals
from latentrt.export.trace import TORCH_DTYPES, save, trace
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits


def main() -> None:
    """Measure decoder and encoder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", nargs="?", default="benchmarks/configs/sdxl-base")
    parser.add_argument("--blow-up", type=int, default=17, help="every signal grows by this power of two")
    arguments = parser.parse_args()
    checkpoint = Checkpoint.open(arguments.checkpoint, random_seed=0)
    figures = {name: measure(checkpoint, name, arguments.blow_up) for name in sorted(VAE)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(figures | {"peak_gb": round(peak, 2)}))


def measure(checkpoint: Checkpoint, component: str, exponent: int) -> dict[str, Any]:
    """Scale up one half, fit it to fp16, export and build it."""
    limits = Limits.around(checkpoint.model.native_size)
    spec = component_specs(checkpoint.model, limits, component_precisions("fp16", "fp16"))[component]
    network = checkpoint.network("vae", torch.float32)
    signals = vae_signals(network, component)
    fold(signals, {name: exponent for name in signals.writers if name and not name.endswith((".to_q", ".to_k"))})
    seconds: dict[str, float] = {}
    started, processor = time.perf_counter(), time.process_time()
    samples = vae_samples(network, component, checkpoint.model.native_size)
    record, islands = fit_vae_to_fp16(network, component, samples)
    seconds |= {"fit": time.perf_counter() - started, "fit, processor": time.process_time() - processor}
    module = wrap(component, network, checkpoint.model)
    to_fp16(module)
    frame(module, islands, [TORCH_DTYPES[port.dtype] for port in spec.outputs])
    share = fp16_share(module, component)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        (file, *_) = save(trace(module, spec, 0), spec, Path(folder) / f"{component}.onnx")
        seconds["export"] = time.perf_counter() - started
        started = time.perf_counter()
        built = TensorRTBuilder("tensorrt-rtx", "sm80+").build(Job(spec, "fp16", file, Path(folder), component))
        seconds["build"] = time.perf_counter() - started
    found = {
        "largest": max(record.ranges.values()),
        "largest_scaled": record.largest,
        "scales": [min(record.scales.values(), default=0), max(record.scales.values(), default=0), len(record.scales)],
        "islands": record.islands,
        "folding_error": record.folding_error,
        "fp16_error": record.relative,
        "fp16_share_of_flops": share,
        "layers": {kind: count for kind, count in built.layers.items() if kind.split()[0] in HEAVY},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    print(component, found, flush=True)
    return found


def fp16_share(module: nn.Module, component: str) -> float:
    """The share of multiplications in convolutions, linear layers and attentions that is in fp16, at 128 pixels.

    It is counted on the meta device, where nothing is computed.
    """
    counts = {torch.float16: 0, torch.float32: 0}

    def count(layer: Any, _inputs: Any, output: torch.Tensor) -> None:
        if isinstance(layer, Attention):  # queries times keys, weights times values
            counts[layer.to_q.weight.dtype] += 2 * output[0, 0].numel() * output.numel()
        else:
            counts[layer.weight.dtype] += layer.weight[0].numel() * output.numel()

    shape = (1, 4, 16, 16) if component == "vae_decoder" else (1, 3, 128, 128)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear | Attention)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    weights = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    with torch.no_grad(), torch.device("meta"):
        torch.func.functional_call(module, weights, (torch.empty(shape, dtype=torch.float16),))
    for hook in hooks:
        hook.remove()
    return counts[torch.float16] / sum(counts.values())


if __name__ == "__main__":
    main()
