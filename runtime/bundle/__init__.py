"""A bundle: the folder that travels from export over build to runtime, and what it says about itself."""

from latentrt.runtime.bundle.folder import Bundle

__all__ = ["Bundle"]
