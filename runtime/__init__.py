"""Run Stable Diffusion engines without torch.

    from latentrt.runtime import Pipeline

    with Pipeline.load("my-bundle") as pipe:
        pipe.generate("a red circle on a blue background", seed=7).save("out.png")

Errors form one tree under `LatentRTError` (`latentrt.runtime.errors`).
"""

import os
from importlib.metadata import version

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.drawing.picture import Drawing
from latentrt.runtime.ensemble import Ensemble
from latentrt.runtime.errors import (
    BackendError,
    BuildError,
    BundleError,
    CheckpointError,
    LatentRTError,
    NumericsError,
    RequestError,
    StaleBuildError,
)
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.upscale import generate_large

__version__ = version("latentrt")

# Read when ONNX Runtime is imported: without it, that writes an identifier of this machine and a database into the
# user's cache, and sends events to Microsoft (its Privacy.md). Who sets the variable to 0 decides otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "BackendError",
    "BuildError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Drawing",
    "Embeddings",
    "Ensemble",
    "LatentRTError",
    "MicroConditioning",
    "NumericsError",
    "Pipeline",
    "Request",
    "RequestError",
    "Result",
    "Settings",
    "StaleBuildError",
    "__version__",
    "generate_large",
]
