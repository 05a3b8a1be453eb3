"""Inspects a built engine on machines with a GPU that can load it."""

import json
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from latentrt.engine.checks import Tensor, check_ports
from latentrt.engine.network import dtype_name
from latentrt.runtime.backends.cuda import device_count
from latentrt.runtime.backends.tensorrt_log import first_error
from latentrt.runtime.bundle.specs import ComponentSpec


def inspect_engine(trt: ModuleType, log: Any, plan: Any, spec: ComponentSpec) -> tuple[str, ...]:
    """Compare the engine's ports with the spec and count its layers by dtype. Returns notes for the build's record.

    Raises:
        BuildError: a port does not match the spec.
    """
    if not device_count():
        return ("engine not inspected: this machine has no GPU",)
    log.errors.clear()
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        # A TensorRT-RTX engine may have been built for another GPU than this machine's.
        return (f"engine not inspected: {first_error(log, 'TensorRT cannot load it here')}",)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    modes = {"INPUT": inputs, "OUTPUT": outputs}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        tensor = Tensor(dtype_name(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name)))
        modes[engine.get_tensor_mode(name).name][name] = tensor
    check_ports(spec, inputs, outputs)
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layer_notes(text)


def layer_notes(information: str) -> tuple[str, ...]:
    """A note with the number of engine layers per dtype, from the inspector's JSON."""
    formats = Counter(format.split()[-1] if format else "-" for format in _formats(json.loads(information)))
    return (f"engine layers by output: {', '.join(f'{name} {count}' for name, count in sorted(formats.items()))}",)


def _formats(information: Any) -> Iterator[str]:
    """The `Format/Datatype` of each engine layer's first output."""
    for layer in information.get("Layers", ()):
        outputs = layer.get("Outputs", ()) if isinstance(layer, dict) else ()
        if outputs:
            yield str(outputs[0].get("Format/Datatype", "-"))
