"""The exact fp16 VAE: scale by powers of two what overflows, prove that nothing changed, and that fp16 holds it.

A VAE normalises its residual stream before every use, and GroupNorm(s·x, s²·ε) = GroupNorm(x, ε). So weights and biases
that write a stream take its scale s, weights that read it give it back, and each norm's ε takes s². Powers of two cost
no rounding: the scaled network gives the same bits in float32.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentrt.export.modules import decode, encoded
from latentrt.export.numerics.fp16 import Scaling, settle
from latentrt.export.numerics.islands import LIMIT, Islands
from latentrt.export.numerics.ranges import Ranges, measure
from latentrt.export.numerics.vae_signals import UNSCALED, Projection, Signals, vae_signals
from latentrt.export.tolerance import relative_error
from latentrt.runtime.bundle.manifest import NumericsRecord
from latentrt.runtime.errors import ParityError

EXACTNESS = 1e-6
"""Largest relative difference that scaling may make in float32: none, unless weights are float32 subnormals."""

WINDOW = 8
"""A signal that must be scaled may be scaled this many powers of two further, where that keeps weights precise."""

WEIGHT_SAMPLE = 4096
"""Weights of a layer that are looked at."""

RUN = {"vae_decoder": decode, "vae_encoder": encoded}


def fit_vae_to_fp16(network: Any, component: str, samples: list[Tensor]) -> tuple[NumericsRecord, Islands]:
    """Make one half of an AutoencoderKL (in float32) hold in fp16: scales, islands, weights rounded to fp16.

    A half whose values all fit over the samples is left as it is. Costs two evaluations of every sample, three where
    something is scaled.

    Raises:
        CheckpointError: a block that latentrt does not know.
        NumericsError: not finite in float32.
        ParityError: scaling changed the outputs, or fp16's differ too much from float32's.
    """
    signals, run = vae_signals(network, component), partial(RUN[component], network)
    measured = measure(network, run, samples)
    exponents = choose_exponents(signals, measured.ranges)
    scaling = Scaling(measured.ranges, exponents)
    if any(exponents.values()):
        fold(signals, exponents)
        before, measured = measured, measure(network, run, samples)
        scaling = replace(scaling, error=_exact(component, measured.outputs, before.outputs))
    return settle(component, network, run, samples, measured, scaling, "--vae-precision fp32")


def _exact(component: str, found: list[Tensor], wanted: list[Tensor]) -> float:
    """What scaling changed in the outputs: nothing, or it raises."""
    error = relative_error(found, wanted)
    if not error <= EXACTNESS:
        raise ParityError(
            f"{component}: scaling by powers of two changed the float32 outputs by {error:.1e} (relative), "
            f"allowed {EXACTNESS:.0e}. Export with --vae-precision fp32"
        )
    return error


def choose_exponents(signals: Signals, ranges: Ranges) -> dict[str, int]:
    """For each signal the exponent of its power of two: 0 where its values fit with headroom.

    1. Queries and keys share their excess, so that their product stays; what still overflows is left to the islands.
    2. Other signals get the largest power of two that gives headroom, or a smaller one within `WINDOW` where that loses
       less of the weights: a projection from a scaled to an unscaled signal would make its weights subnormal.
    """
    largest = {
        name: max(ranges.outputs[writer] for writer in writers)
        for name, writers in signals.writers.items()
        if name != UNSCALED
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
            loss += relative_error(values.float().half(), values)
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
