"""The exact fp16 VAE: scale by powers of two what overflows, prove that nothing changed, and that fp16 holds it.

A VAE normalises its residual stream before every use, and GroupNorm(s·x, s²·ε) = GroupNorm(x, ε). So weights and biases
that write a stream take its scale s, weights that read it give it back, and each norm's ε takes s². Powers of two cost
no rounding: the scaled network gives the same bits in float32.
"""

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentrt.export import parity
from latentrt.export.islands import LIMIT, find_islands, place_islands, run_rounded
from latentrt.export.modules import decode, encoded
from latentrt.export.ranges import Run, measure
from latentrt.export.vae_signals import UNSCALED, Projection, Signals, vae_signals
from latentrt.runtime.errors import ParityError
from latentrt.runtime.manifest import NumericsRecord

logger = logging.getLogger(__name__)

EXACTNESS = 1e-6
"""Largest relative difference that scaling may make in float32: none, unless weights are float32 subnormals."""

WINDOW = 8
"""A signal that must be scaled may be scaled this many powers of two further, where that keeps weights precise."""

WEIGHT_SAMPLE = 4096
"""Weights of a layer that are looked at."""

REMEDY = "Export with --vae-precision fp32"

RUN = {"vae_decoder": decode, "vae_encoder": encoded}


def fit_to_fp16(network: Any, component: str, samples: list[Tensor]) -> NumericsRecord:
    """Make one half of an AutoencoderKL (in float32) hold in fp16: scales, islands, weights rounded to fp16.

    A half whose values all fit over the samples is left as it is.

    Raises:
        CheckpointError: a block that latentrt does not know.
        NumericsError: not finite in float32.
        ParityError: scaling changed the outputs, or fp16's differ too much from float32's.
    """
    started = time.perf_counter()
    half = Half(component, vae_signals(network, component), partial(RUN[component], network))
    ranges, wanted = half.measure(samples)
    exponents = choose_exponents(half.signals, ranges)
    folding_error = half.scale(exponents, samples[-1], wanted[-1]) if any(exponents.values()) else 0.0
    after = scaled_ranges(half.signals, ranges, exponents)
    islands = find_islands(half.signals, after)
    layers = place_islands(network, islands)
    record = NumericsRecord(
        samples=len(samples),
        ranges={name: float(f"{largest:.4g}") for name, largest in ranges.items()},
        scales={name: exponent for name, exponent in exponents.items() if exponent},
        largest=float(f"{max(value for name, value in after.items() if not inside(name, islands)):.4g}"),
        islands=tuple(islands),
        float32_layers=layers,
        folding_error=folding_error,
        relative=half.fp16_error(samples, wanted),
    )
    _log(component, record, len(half.signals.writers) - 1, time.perf_counter() - started)
    return record


def _log(component: str, record: NumericsRecord, signals: int, seconds: float) -> None:
    largest = max(record.ranges.values())
    logger.info("%s: values up to %.3g, %d of %d signals scaled", component, largest, len(record.scales), signals)
    islands = ", ".join(record.islands) or "none"
    logger.info("%s: float32 islands: %s; fp16 error %.1e, %.1f s", component, islands, record.relative, seconds)


@dataclass(frozen=True, slots=True)
class Half:
    """A VAE's encoder or decoder: its signals, and how it is run."""

    component: str
    signals: Signals
    run: Run

    def measure(self, samples: list[Tensor]) -> tuple[dict[str, float], list[Tensor]]:
        """Ranges by module, and outputs."""
        return measure(self.signals.network, self.signals.modules, self.signals.attentions, self.run, samples)

    def scale(self, exponents: Mapping[str, int], sample: Tensor, wanted: Tensor) -> float:
        """Fold the scales in; returns what changed in the outputs: nothing, or it raises.

        One sample is enough: every weight takes part in it.
        """
        fold(self.signals, exponents)
        with torch.no_grad():
            error = difference([self.run(sample)], [wanted])
        if not error <= EXACTNESS:
            raise ParityError(
                f"{self.component}: scaling by powers of two changed the float32 outputs by {error:.1e} (relative), "
                f"allowed {EXACTNESS:.0e}. {REMEDY}"
            )
        return error

    def fp16_error(self, samples: list[Tensor], wanted: list[Tensor]) -> float:
        """How far fp16 is from float32 over the samples; raises where that is out of tolerance."""
        error = difference(run_rounded(self.signals.network, self.run, samples), wanted)
        if not error <= parity.TOLERANCE["fp16"]:
            raise ParityError(
                f"{self.component}: fp16 differs from float32 by {error:.1e} (relative) over {len(samples)} samples, "
                f"allowed {parity.TOLERANCE['fp16']:.0e}. {REMEDY}"
            )
        return error


def scaled_ranges(signals: Signals, ranges: Mapping[str, float], exponents: Mapping[str, int]) -> dict[str, float]:
    """The ranges after scaling: exactly those before, times the scale of the signal that a module writes."""
    scaled = {
        writer: ranges[writer] * 2.0 ** exponents.get(signal, 0)
        for signal, writers in signals.writers.items()
        for writer in writers
    }
    return {**ranges, **scaled}


def inside(name: str, islands: Collection[str]) -> bool:
    """Whether a module is an island or part of one."""
    return any(name == island or name.startswith(f"{island}.") for island in islands)


def choose_exponents(signals: Signals, ranges: Mapping[str, float]) -> dict[str, int]:
    """For each signal the exponent of its power of two: 0 where its values fit with headroom.

    1. Queries and keys share their excess, so that their product stays; what still overflows is left to the islands.
    2. Other signals get the largest power of two that gives headroom, or a smaller one within `WINDOW` where that loses
       less of the weights: a projection from a scaled to an unscaled signal would make its weights subnormal.
    """
    largest = {
        name: max(ranges[writer] for writer in writers) for name, writers in signals.writers.items() if name != UNSCALED
    }
    exponents: dict[str, int] = {}
    for name in signals.attentions:
        query, key = largest.pop(f"{name}.to_q"), largest.pop(f"{name}.to_k")
        shift = round(math.log2(key / query) / 2) if max(query, key) > LIMIT and min(query, key) > 0 else 0
        exponents |= {f"{name}.to_q": shift, f"{name}.to_k": -shift}
    needed = {name: _exponent(value) for name, value in largest.items()}
    exponents |= needed
    for _ in range(2):  # each choice bears upon its neighbours'
        for name in (name for name, exponent in needed.items() if exponent < 0):
            losses = {
                exponent: _weight_loss(signals, name, exponents | {name: exponent})
                for exponent in range(needed[name], needed[name] - WINDOW, -1)
            }
            bound = 1.1 * min(losses.values())
            exponents[name] = next(exponent for exponent, loss in losses.items() if loss <= bound)
    return exponents


def _exponent(largest: float) -> int:
    """Of the largest power of two, at most 1, that brings this value below the limit."""
    return math.floor(math.log2(LIMIT / largest)) if largest > LIMIT else 0


def _weight_loss(signals: Signals, signal: str, exponents: Mapping[str, int]) -> float:
    """The relative rounding errors of the weights that write or read a signal, summed up, for these exponents."""
    loss = 0.0
    for projection in signals.projections:
        if signal in (projection.source, projection.target):
            weight = signals.network.get_submodule(projection.module).get_parameter("weight").detach().flatten()
            values = weight[:: max(1, len(weight) // WEIGHT_SAMPLE)].double() * 2.0 ** _shift(projection, exponents)
            rounded = values.float().half().double()
            loss += (torch.norm(rounded - values) / torch.norm(values).clamp_min(1e-300)).item()
    return loss


def _shift(projection: Projection, exponents: Mapping[str, int]) -> int:
    return exponents.get(projection.target, 0) - exponents.get(projection.source, 0)


def fold(signals: Signals, exponents: Mapping[str, int]) -> None:
    """Write the scales into weights, biases and epsilons, in place. A signal that is not named keeps its scale."""
    with torch.no_grad():
        for projection in signals.projections:
            module: Any = signals.network.get_submodule(projection.module)
            module.weight.mul_(2.0 ** _shift(projection, exponents))
            if module.bias is not None:
                module.bias.mul_(2.0 ** exponents.get(projection.target, 0))
    for norm in signals.norms:
        module = signals.network.get_submodule(norm.module)
        module.eps *= 4.0 ** exponents.get(norm.source, 0)


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Root mean square of the difference over that of what is wanted, all samples together; 0 for identical bits."""
    pairs = list(zip(found, wanted, strict=True))
    error = sum((one.double() - other.double()).square().sum().item() for one, other in pairs)
    scale = sum(other.double().square().sum().item() for _, other in pairs)
    return math.sqrt(error / (scale or 1.0))
