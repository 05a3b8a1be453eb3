"""The backends, as one dict of import strings: a backend's library is imported when the backend is used."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version

from latentrt.runtime.backends.base import Backend, Binding, Buffer, Engine, Mark
from latentrt.runtime.backends.targets import backend_version, load_module

__all__ = ["BACKENDS", "Backend", "Binding", "Buffer", "Engine", "Mark", "identity", "open_backend"]

BACKENDS: Mapping[str, str] = {
    "tensorrt": "latentrt.runtime.backends.tensorrt:TensorRTBackend",
    "tensorrt-rtx": "latentrt.runtime.backends.tensorrt:TensorRTBackend",
    "onnxruntime": "latentrt.runtime.backends.onnxruntime:OnnxRuntimeBackend",
}
"""Backend: its class, in the order of preference where a bundle holds builds for several."""


def open_backend(name: str, device: str) -> Backend:
    """Open a backend on `cpu` or `cuda:<index>`.

    Raises:
        BackendError: the backend is unknown or not installed, or the device is not there.
    """
    load_module(name)
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)(name, device)
    return backend


def identity(backend: str, target: str) -> dict[str, str]:
    """What of this installation an engine depends on: the fields of its key that are not the bundle's."""
    return {
        "backend": backend,
        "backend_version": backend_version(backend),
        "target": target,
        "latentrt": version("latentrt"),
    }
