"""The kernels that TensorRT-RTX compiles while it runs, kept in the user's cache folder for the next process."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from latentrt.runtime.backends.cuda import Device
from latentrt.runtime.backends.targets import slug
from latentrt.runtime.cache import cache_folder, locked, write_atomically
from latentrt.runtime.errors import BuildError

logger = logging.getLogger(__name__)


class KernelCache:
    """One cache for all engines of a backend, which grows as they compile kernels; `save` writes it.

    Kernels for a set of sizes are all compiled before its first inference is over, never later with a fallback until
    then: a captured step would keep the fallback for good.

    The file belongs to one TensorRT-RTX version and one GPU model, and is shared by processes under a lock.
    """

    def __init__(self, trt: ModuleType, gpu: Device):
        self.file = cache_folder() / "kernels" / f"tensorrt-rtx-{trt.__version__}-{slug(gpu.name)}.cache"
        self.cache: Any = None
        self._eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Make a runtime config compile eagerly and use the cache, which the first call creates and fills."""
        config.dynamic_shapes_kernel_specialization_strategy = self._eager
        if self.cache is None:
            self.cache = config.create_runtime_cache()
            self._fill()
        if not config.set_runtime_cache(self.cache):
            logger.warning("TensorRT-RTX refuses the kernel cache; it compiles its kernels again in every process")

    def _fill(self) -> None:
        try:
            with locked(self._lock, "the kernel cache is in use", wait=True):
                found = self.file.read_bytes() if self.file.is_file() else b""
        except (OSError, BuildError) as error:
            logger.warning("%s: cannot be read, so kernels are compiled anew: %s", self.file, error)
            return
        if found and self.cache.deserialize(found):
            self._saved = found
        elif found:
            logger.info("%s: not usable by this driver or version, kernels are compiled anew", self.file)

    def save(self) -> None:
        """Write the kernels compiled so far, if there are new ones; a folder that refuses them is a warning."""
        kernels = b"" if self.cache is None else bytes(memoryview(self.cache.serialize()))
        if kernels == self._saved:
            return
        try:
            with locked(self._lock, "the kernel cache is in use", wait=True):
                write_atomically(self.file, kernels)
        except (OSError, BuildError) as error:
            logger.warning(
                "%s: cannot be written, so the next process compiles its kernels again: %s", self.file, error
            )
        self._saved = kernels

    @property
    def _lock(self) -> Path:
        return self.file.with_suffix(".lock")
