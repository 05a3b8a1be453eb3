"""Backends: what runs engines on a device. The protocol, every known backend, and the machines that engines run on."""

from latentrt.runtime.backends.base import Backend, Binding, Block, Buffer, Engine, Mark
from latentrt.runtime.backends.registry import BACKENDS, identity, open_backend

__all__ = ["BACKENDS", "Backend", "Binding", "Block", "Buffer", "Engine", "Mark", "identity", "open_backend"]
