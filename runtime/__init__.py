"""Run Stable Diffusion engines without torch.

    from latentrt.runtime import Pipeline

    with Pipeline.load("my-bundle") as pipe:
        pipe.generate("a red circle on a blue background", seed=7).save("out.png")

Errors form one tree under `LatentRTError`.
"""

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.ensemble import Ensemble
from latentrt.runtime.errors import (
    BackendError,
    BenchmarkError,
    BuildError,
    BundleError,
    CheckpointError,
    LatentRTError,
    NumericsError,
    ParityError,
    PrecisionError,
    RequestError,
    StaleBuildError,
)
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.request import Request
from latentrt.runtime.upscale import generate_large

__all__ = [
    "BackendError",
    "BenchmarkError",
    "BuildError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Embeddings",
    "Ensemble",
    "LatentRTError",
    "MicroConditioning",
    "NumericsError",
    "ParityError",
    "Pipeline",
    "PrecisionError",
    "Request",
    "RequestError",
    "Result",
    "StaleBuildError",
    "generate_large",
]
