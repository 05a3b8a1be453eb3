"""The bundle: the folder that passes from export to build to runtime, and the records in it."""

from latentrt.runtime.bundle.bundle import Bundle

__all__ = ["Bundle"]
