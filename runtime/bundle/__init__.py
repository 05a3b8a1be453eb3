"""The bundle: the folder that passes from export to build to runtime, and the records in it."""

from latentrt.runtime.bundle.folder import Bundle

__all__ = ["Bundle"]
