"""Every exported component against torch: outputs of the ONNX file in ONNX Runtime, sizes from the spec's dims."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from latentrt.export.numerics.emulation import emulated
from latentrt.export.sample_inputs import sample_inputs
from latentrt.export.session import feed, open_session
from latentrt.export.tolerance import TOLERANCE, relative_error
from latentrt.runtime.bundle.manifest import ParityRecord
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK, ComponentSpec, Precision
from latentrt.runtime.errors import ParityError

Depth = Literal["full", "quick", "off"]


BYTES = 1e-3
"""Allowed on top where an output is bytes: a value between two of them may round to either, in every sixtieth or so."""


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes at which a component is compared, and torch's float32 outputs there."""

    name: str
    sizes: dict[str, int]
    outputs: tuple[NDArray[Any], ...]


def case_sizes(spec: ComponentSpec, depth: Depth) -> Iterator[tuple[str, dict[str, int]]]:
    """(name, sizes) of every case that says something new about this component's dims.

    `full`: min, opt, max, one non-square, one 8·odd size and two chunks of tokens. `quick`: min, 8·odd and two chunks,
    the latter two at the minimum of everything else.
    """
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
    """The nearest odd size that does not exceed `largest`."""
    return size if size % 2 else (size + 1 if size < largest else size - 1)


def reference_cases(module: torch.nn.Module, spec: ComponentSpec, vocabulary: int, depth: Depth) -> list[Case]:
    """Torch's outputs at every case; `module` holds float32 weights."""
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
    """Run the ONNX file at every case and measure each output; bf16 files as `numerics.emulation` describes.

    Raises:
        ParityError: an output is out of tolerance; names the component, the case, the output and both figures.
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
        outputs = session.run(None, feed(session, spec, inputs))
        for port, found, wanted in zip(spec.outputs, outputs, case.outputs, strict=True):
            record = _measure(case, port.name, found, wanted)
            allowed = TOLERANCE[precision] + (BYTES if port.dtype == "uint8" else 0)
            if not record.relative <= allowed:
                raise ParityError(
                    f"{spec.name}: output {port.name} differs from torch by {record.relative:.1e} (relative) in case "
                    f"{case.name!r}, allowed {allowed:.1e} in {precision}. The export is not trustworthy"
                )
            records.append(record)
    return tuple(records)


def _measure(case: Case, output: str, found: NDArray[Any], wanted: NDArray[Any]) -> ParityRecord:
    if found.shape != wanted.shape:
        raise ParityError(f"output {output}: shape {found.shape}, torch gives {wanted.shape} in case {case.name!r}")
    return ParityRecord(
        case=case.name,
        sizes=case.sizes,
        output=output,
        max_abs=float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()),
        relative=relative_error(found, wanted),
    )
