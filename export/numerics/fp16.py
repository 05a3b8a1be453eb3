"""Any network in fp16: measure its values in float32, put float32 islands where they do not fit, prove the result."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from latentrt.export.numerics.islands import Islands, find_islands, place_islands, rehearse
from latentrt.export.numerics.ranges import Measured, Ranges, Run, logits_name, measure
from latentrt.export.tolerance import TOLERANCE, relative_error
from latentrt.runtime.bundle.manifest import NumericsRecord
from latentrt.runtime.errors import ParityError

logger = logging.getLogger(__name__)

KEPT_RANGES = 64
"""How many values a record keeps, the largest ones: U-Nets have thousands of modules."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a network was scaled by powers of two before it was measured for islands; by default not at all.

    `before`: ranges of the unscaled network. `exponents`: signal -> exponent. `error`: `relative_error` of the scaled
    network's float32 outputs.
    """

    before: Ranges
    exponents: dict[str, int] = field(default_factory=dict)
    error: float = 0.0


def fit_to_fp16(component: str, network: nn.Module, run: Run, samples: Sequence[Any]) -> tuple[NumericsRecord, Islands]:
    """Measure a float32 network, place islands where they are needed, and round its other weights to fp16.

    `run` takes one sample. A network whose values all fit gets no island. Costs two evaluations of every sample, and no
    memory beyond the network's own float32 weights.

    Raises:
        NumericsError: a value is not finite even in float32.
        ParityError: fp16 with the islands differs too much from float32.
    """
    measured = measure(network, run, samples)
    scaling = Scaling(measured.ranges)
    return fit_with_islands(component, network, run, samples, measured, scaling, "Export with --precision bf16 or fp32")


def fit_with_islands(
    component: str,
    network: nn.Module,
    run: Run,
    samples: Sequence[Any],
    measured: Measured,
    scaling: Scaling,
    remedy: str,
) -> tuple[NumericsRecord, Islands]:
    """Place islands where the measured values need them, and compare fp16 with float32 over the samples.

    `remedy`: the last sentence of the error's message.

    Raises:
        ParityError: fp16 with the islands differs too much from float32.
    """
    started = time.perf_counter()
    islands = find_islands(network, measured.ranges)
    place_islands(network, islands)
    error = relative_error(rehearse(network, run, samples), measured.outputs)
    if not error <= TOLERANCE["fp16"]:
        raise ParityError(
            f"{component}: fp16 differs from float32 by {error:.1e} (relative) over {len(samples)} samples, "
            f"allowed {TOLERANCE['fp16']:.0e}. {remedy}"
        )
    record = NumericsRecord(
        samples=len(samples),
        ranges=largest_values(scaling.before),
        scales={name: exponent for name, exponent in scaling.exponents.items() if exponent},
        largest=_brief(largest_outside(measured.ranges, islands)),
        islands=tuple(name or "the network's own code" for name in islands.tops),
        float32_layers=islands.layers,
        folding_error=scaling.error,
        relative=error,
    )
    _log(component, record, time.perf_counter() - started)
    return record, islands


def largest_values(ranges: Ranges) -> dict[str, float]:
    """The `KEPT_RANGES` largest values by name, in descending order."""
    ordered = sorted(ranges.named.items(), key=lambda entry: -entry[1])[:KEPT_RANGES]
    return {name: _brief(largest) for name, largest in ordered}


def largest_outside(ranges: Ranges, islands: Islands) -> float:
    """Largest value that is stored in fp16."""
    inside = islands.modules | {logits_name(name) for name in islands.modules}
    return max((value for name, value in ranges.named.items() if name not in inside), default=0.0)


def _brief(value: float) -> float:
    return float(f"{value:.4g}")


def _log(component: str, record: NumericsRecord, seconds: float) -> None:
    largest = max(record.ranges.values(), default=0.0)
    islands = ", ".join(record.islands) or "none"
    logger.info("%s: values up to %.3g, %d signals scaled", component, largest, len(record.scales))
    logger.info(
        "%s: float32 islands: %s; fp16 error %.1e, proved in %.1f s", component, islands, record.relative, seconds
    )
