"""The kernels that TensorRT-RTX compiles while it runs, kept in the user's cache folder for the next process."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from latentrt.runtime.backends.cuda import Device
from latentrt.runtime.backends.targets import slug
from latentrt.runtime.cache import cache_folder, locked, write_atomically

logger = logging.getLogger(__name__)


class KernelCache:
    """One cache for all engines of a backend, which grows as they compile kernels; `save` writes it.

    The file belongs to one TensorRT-RTX version and one GPU model, and is shared by processes under a lock.
    """

    def __init__(self, trt: ModuleType, gpu: Device):
        self.file = cache_folder() / "kernels" / f"tensorrt-rtx-{trt.__version__}-{slug(gpu.name)}.cache"
        self.cache: Any = None

    def attach(self, config: Any) -> None:
        """Make a runtime config use the cache, which the first call creates and fills."""
        if self.cache is None:
            self.cache = config.create_runtime_cache()
            self._fill()
        if not config.set_runtime_cache(self.cache):
            logger.warning("TensorRT-RTX refuses the kernel cache; it compiles its kernels again in every process")

    def _fill(self) -> None:
        with locked(self._lock, "the kernel cache is in use", wait=True):
            if self.file.is_file() and not self.cache.deserialize(self.file.read_bytes()):
                logger.info("%s: not usable by this driver or version, kernels are compiled anew", self.file)

    def save(self) -> None:
        """Write the kernels compiled so far."""
        if self.cache is not None:
            with locked(self._lock, "the kernel cache is in use", wait=True):
                write_atomically(self.file, self.cache.serialize())

    @property
    def _lock(self) -> Path:
        return self.file.with_suffix(".lock")
