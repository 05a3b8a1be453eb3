"""The exact fp16 VAE: scale what overflows by powers of two, then prove that nothing changed and that fp16 holds it.

A VAE normalises its residual stream before every use, and GroupNorm(s·x, s²·ε) = GroupNorm(x, ε). So weights and biases
that write a stream are multiplied by its scale s, weights that read it are divided by s, and the ε of each norm that
reads it is multiplied by s². Powers of two cost no rounding: the scaled network gives the same bits in float32.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentrt.export.modules import decode, encode
from latentrt.export.numerics.fp16 import Scaling, fit_with_islands
from latentrt.export.numerics.islands import LIMIT, Islands
from latentrt.export.numerics.ranges import Ranges, measure
from latentrt.export.numerics.vae_signals import REMEDY, UNSCALED, Projection, Signals, vae_signals
from latentrt.export.tolerance import relative_error
from latentrt.runtime.bundle.manifest import NumericsRecord
from latentrt.runtime.errors import ParityError

EXACTNESS = 1e-6
"""Largest `relative_error` that scaling may cause in float32; it is 0 unless weights become float32 subnormals."""

QUIET = 128.0
"""Largest absolute value of a signal over the samples, after scaling: 512× headroom below fp16's largest number.

Latents far from the samples make values that grow faster than they do, and scaling costs nothing."""

WINDOW = 8
"""How many exponents below `QUIET` are tried for a signal: scaling further may keep weights more precise."""

WEIGHT_SAMPLE = 4096
"""How many weights of a layer are examined."""

RUN = {"vae_decoder": decode, "vae_encoder": encode}
"""How each half of a VAE runs over one sample."""


def fit_vae_to_fp16(network: Any, component: str, samples: list[Tensor]) -> tuple[NumericsRecord, Islands]:
    """Scale one half of a float32 VAE into fp16's range, place islands, and round its other weights to fp16.

    `component`: `vae_decoder` or `vae_encoder`. A half whose values all fit over the samples is left as it is. Costs
    two evaluations of every sample, three where something is scaled.

    Raises:
        CheckpointError: it holds a block that latentrt does not know.
        NumericsError: a value is not finite even in float32.
        ParityError: scaling changed the outputs, or fp16 differs too much from float32.
    """
    signals, run = vae_signals(network, component), partial(RUN[component], network)
    measured = measure(network, run, samples)
    exponents = choose_exponents(signals, measured.ranges)
    scaling = Scaling(measured.ranges, exponents)
    if any(exponents.values()):
        fold(signals, exponents)
        before, measured = measured, measure(network, run, samples)
        scaling = replace(scaling, error=_check_exact(component, measured.outputs, before.outputs))
    return fit_with_islands(component, network, run, samples, measured, scaling, REMEDY)


def _check_exact(component: str, scaled: list[Tensor], unscaled: list[Tensor]) -> float:
    """Refuse scales that changed the float32 outputs; returns the relative error that was tolerated."""
    error = relative_error(scaled, unscaled)
    if not error <= EXACTNESS:
        raise ParityError(
            f"{component}: scaling by powers of two changed the float32 outputs by {error:.1e} (relative), "
            f"allowed {EXACTNESS:.0e}. {REMEDY}"
        )
    return error


def choose_exponents(signals: Signals, ranges: Ranges) -> dict[str, int]:
    """Choose the exponent of each signal's power of two: 0 where its values are no larger than `QUIET`.

    1. Queries and keys share their excess, so that their product stays; islands take care of what still overflows.
    2. Other signals get the largest power of two that brings them down to `QUIET`, or another one where that rounds
       the weights less: a smaller one within `WINDOW`, or else a larger one that still leaves `HEADROOM`. Next to a
       signal of another scale, weights may become subnormal.
    """
    largest = {
        name: max(ranges.outputs[writer] for writer in writers)
        for name, writers in signals.writers.items()
        if name != UNSCALED
    }
    exponents: dict[str, int] = {}
    for name in signals.attentions:
        query, key = largest.pop(f"{name}.to_q"), largest.pop(f"{name}.to_k")
        shift = round(math.log2(key / query) / 2) if max(query, key) > QUIET and min(query, key) > 0 else 0
        exponents |= {f"{name}.to_q": shift, f"{name}.to_k": -shift}
    wanted = {name: _exponent(value, QUIET) for name, value in largest.items()}
    exponents |= wanted
    for _ in range(2):  # each choice affects its neighbours'
        for name in (name for name, exponent in wanted.items() if exponent < 0):
            lower = range(wanted[name], wanted[name] - WINDOW, -1)
            higher = range(wanted[name] + 1, _exponent(largest[name], LIMIT) + 1)
            losses = {
                exponent: _weight_loss(signals, name, exponents | {name: exponent}) for exponent in (*lower, *higher)
            }
            bound = 1.1 * min(losses.values())
            exponents[name] = next(exponent for exponent, loss in losses.items() if loss <= bound)
    return exponents


def _exponent(largest: float, bound: float) -> int:
    """Exponent of the largest power of two ≤ 1 that brings `largest` down to `bound`."""
    return math.floor(math.log2(bound / largest)) if largest > bound else 0


def _weight_loss(signals: Signals, signal: str, exponents: Mapping[str, int]) -> float:
    """Sum of the relative errors by which fp16 rounds the weights that write or read a signal, for these exponents."""
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
    """Fold the scales into weights, biases and epsilons, in place; a signal without an exponent keeps its scale."""
    with torch.no_grad():
        for projection in signals.projections:
            module: Any = signals.network.get_submodule(projection.module)
            module.weight.mul_(2.0 ** _shift(projection, exponents))
            if module.bias is not None:
                module.bias.mul_(2.0 ** exponents.get(projection.target, 0))
    for norm in signals.norms:
        module = signals.network.get_submodule(norm.module)
        module.eps *= 4.0 ** exponents.get(norm.source, 0)
