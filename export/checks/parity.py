"""Comparison of an exported component with torch: its ONNX file in ONNX Runtime, at sizes from the spec's dims."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from latentrt.export.choices import ParityDepth
from latentrt.export.numerics.emulation import emulated
from latentrt.export.sample_inputs import sample_inputs
from latentrt.export.session import feed, open_session
from latentrt.export.tolerance import TOLERANCE, relative_error
from latentrt.runtime.bundle.manifest import ParityRecord
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK, ComponentSpec, Precision
from latentrt.runtime.errors import ParityError

"""Which sizes are compared; see `case_sizes`."""

BYTES = 1e-3
"""Further tolerance of outputs in bytes: about every sixtieth value lies near enough to a half to round either way."""


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes at which a component is compared, and torch's float32 outputs there."""

    name: str
    sizes: dict[str, int]
    outputs: tuple[NDArray[Any], ...]


def case_sizes(spec: ComponentSpec, depth: ParityDepth) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield (name, sizes) of every case that says something new about this component's dims.

    `full`: min, opt, max, a non-square size, an odd size of the latents, and two chunks of tokens. `quick`: min, odd
    and two chunks, with everything else at its minimum. `off`: none. With profiles, the cases that one of them serves,
    or if there is none, the optimum of each.
    """
    cases = list(_all_case_sizes(spec, depth))
    served = [(name, sizes) for name, sizes in cases if spec.profiles_of(sizes)]
    if cases and not served:
        for number, profile in enumerate(spec.profiles, 1):
            yield f"profile {number}", {name: dim.opt for name, dim in profile.items()}
    yield from served


def _all_case_sizes(spec: ComponentSpec, depth: ParityDepth) -> Iterator[tuple[str, dict[str, int]]]:
    small, medium, large = (spec.sizes(which) for which in ("min", "opt", "max"))
    if depth == "off":
        return
    yield "min", small
    base = medium if depth == "full" else small
    if depth == "full":
        yield from (("opt", medium), ("max", large))
        if "latent_width" in spec.dims:
            yield (
                "non-square",
                medium | {"latent_width": spec.dims["latent_width"].max, "latent_height": small["latent_height"]},
            )
    if "latent_width" in spec.dims:
        yield "odd", base | {name: _odd(base[name], spec.dims[name].max) for name in ("latent_height", "latent_width")}
    if "tokens" in spec.dims and 2 * TOKENS_PER_CHUNK in spec.dims["tokens"]:
        yield "two chunks", base | {"tokens": 2 * TOKENS_PER_CHUNK}


def _odd(size: int, largest: int) -> int:
    """Nearest odd size, upwards unless that exceeds `largest`."""
    return size if size % 2 else (size + 1 if size < largest else size - 1)


def reference_cases(module: torch.nn.Module, spec: ComponentSpec, vocabulary: int, depth: ParityDepth) -> list[Case]:
    """Compute torch's outputs at every case; `module` has float32 weights."""
    cases = []
    with torch.no_grad():
        for name, sizes in case_sizes(spec, depth):
            outputs = module(**sample_inputs(spec, sizes, vocabulary))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            cases.append(Case(name, sizes, tuple(output.numpy() for output in outputs)))
    return cases


def compare(
    file: Path, spec: ComponentSpec, cases: list[Case], vocabulary: int, precision: Precision
) -> tuple[ParityRecord, ...]:
    """Run the ONNX file at every case and measure each output; a bf16 file runs as its copy by `numerics.emulation`.

    Raises:
        ParityError: an output is out of tolerance; the message names component, case, output and both figures.
    """
    if not cases:
        return ()
    if precision == "bf16":
        with emulated(file) as copy:
            return _compare(open_session(copy, optimise=False), spec, cases, vocabulary, precision)
    return _compare(open_session(file), spec, cases, vocabulary, precision)


def _compare(
    session: onnxruntime.InferenceSession, spec: ComponentSpec, cases: list[Case], vocabulary: int, precision: Precision
) -> tuple[ParityRecord, ...]:
    records = []
    for case in cases:
        inputs = sample_inputs(spec, case.sizes, vocabulary)
        outputs = session.run(None, feed(spec, inputs))
        for port, values, reference in zip(spec.outputs, outputs, case.outputs, strict=True):
            record = _measure(case, port.name, values, reference)
            allowed = TOLERANCE[precision] + (BYTES if port.dtype == "uint8" else 0)
            if not record.relative <= allowed:
                raise ParityError(
                    f"{spec.name}: output {port.name} differs from torch by {record.relative:.1e} (relative) in case "
                    f"{case.name!r}, allowed {allowed:.1e} in {precision}. The export is not trustworthy"
                )
            records.append(record)
    return tuple(records)


def _measure(case: Case, output: str, values: NDArray[Any], reference: NDArray[Any]) -> ParityRecord:
    if values.shape != reference.shape:
        raise ParityError(f"output {output}: shape {values.shape}, torch gives {reference.shape} in case {case.name!r}")
    return ParityRecord(
        case=case.name,
        sizes=case.sizes,
        output=output,
        max_abs=float(np.abs(values.astype(np.float64) - reference.astype(np.float64)).max()),
        relative=relative_error(values, reference),
    )
