"""The U-Net as two engines: a prologue that runs once per request, and a body that runs on every step.

The prologue computes what depends on the prompt alone (`latentrt.engine.passes.hoist`). Its outputs are inputs of the
body, by the same names; the keys of the two engines record which they are.
"""

from collections.abc import Mapping

from latentrt.runtime.bundle.engine_key import EngineKey
from latentrt.runtime.bundle.specs import ComponentSpec, Port
from latentrt.runtime.errors import BundleError

WHOLE, PROLOGUE, BODY = "unet", "unet_prologue", "unet_body"
PARTS = (PROLOGUE, BODY)

LOOP_INPUTS = ("sample", "timestep")
"""The U-Net's inputs that change from step to step."""

PASSES = 4
"""Version of the graph passes, raised whenever they would make another engine of the same file."""


def component_of(engine: str) -> str:
    """The component that an engine runs, whole or in part."""
    return WHOLE if engine in PARTS else engine


def passes_of(engine: str, *, rewritten: bool) -> int:
    """The version of the passes that an engine went through; 0 for one that is built as it was exported.

    The U-Net's parts always go through them; `rewritten` says whether whole components do as well.
    """
    return PASSES if rewritten or engine in PARTS else 0


def replace_whole(
    specs: Mapping[str, ComponentSpec], parts: Mapping[str, ComponentSpec] | None
) -> dict[str, ComponentSpec]:
    """Specs in which the U-Net's parts, if there are any, replace the whole."""
    found: dict[str, ComponentSpec] = {}
    for name, spec in specs.items():
        found |= parts if parts and name == WHOLE else {name: spec}
    return found


def recorded_parts(
    specs: Mapping[str, ComponentSpec], keys: Mapping[str, EngineKey]
) -> dict[str, ComponentSpec] | None:
    """The parts that the keys of a build record, with the ranges of the whole; None for a build without parts.

    Raises:
        BundleError: the parts do not fit each other or the whole.
    """
    if WHOLE not in specs or not all(name in keys for name in PARTS):
        return None
    whole, found = specs[WHOLE], {}
    for name in PARTS:
        tables = keys[name].inputs, keys[name].outputs
        inputs, outputs = (tuple(Port.parse(*port) for port in table.items()) for table in tables)
        if unknown := {axis.dim for port in inputs + outputs for axis in port.axes if axis.dim} - whole.dims.keys():
            raise BundleError(f"{name}: its ports have the dims {', '.join(sorted(unknown))}, which unet has not")
        found[name] = ComponentSpec(name, inputs, outputs, whole.dims, whole.profiles)
    prologue, body = found[PROLOGUE], found[BODY]
    for part, given in ((prologue, whole.inputs), (body, whole.inputs + prologue.outputs)):
        if odd := [port.name for port in part.inputs if port not in given]:
            raise BundleError(f"{part.name}: nothing gives its input {odd[0]}")
    if body.outputs != whole.outputs:
        raise BundleError(f"{BODY}: its outputs are not unet's")
    return found
