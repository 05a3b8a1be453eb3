"""The kernels that TensorRT-RTX compiles while it runs, kept with the build that they belong to."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from latentrt.runtime.backends.cuda import Device
from latentrt.runtime.backends.targets import slug
from latentrt.runtime.bundle.atomic_files import KERNELS
from latentrt.runtime.cache import cache_folder, locked, write_atomically
from latentrt.runtime.errors import BuildError

logger = logging.getLogger(__name__)


class KernelCache:
    """One cache for all engines of a backend, which grows as they compile kernels; `save` writes it.

    Kernels for a set of sizes are all compiled before its first inference is over, never later with a fallback until
    then: a captured step would keep the fallback for good.

    Its file lies in the build's folder, so that it travels with the bundle, and in the user's cache folder where that
    one cannot be written. It belongs to one TensorRT-RTX version and one GPU model, and TensorRT-RTX itself refuses one
    that does not suit the driver.
    """

    def __init__(self, trt: ModuleType, gpu: Device):
        name = f"tensorrt-rtx-{trt.__version__}-{slug(gpu.name)}.cache"
        self.files = [cache_folder() / KERNELS / name]
        """Where the kernels are read and written; the first place that works."""
        self.cache: Any = None
        self._eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._saved = b""

    def keep_with(self, build: Path) -> None:
        """Prefer a build's folder from now on; called before any engine of the build is bound."""
        file = build / KERNELS / self.files[-1].name
        if file not in self.files:
            self.files.insert(0, file)

    def attach(self, config: Any) -> None:
        """Make a runtime config compile eagerly and use the cache, which the first call creates and fills."""
        config.dynamic_shapes_kernel_specialization_strategy = self._eager
        if self.cache is None:
            self.cache = config.create_runtime_cache()
            self._fill()
        if not config.set_runtime_cache(self.cache):
            logger.warning("TensorRT-RTX refuses the kernel cache; it compiles its kernels again in every process")

    def _fill(self) -> None:
        for file in self.files:
            try:
                found = file.read_bytes()  # whole, as files are only ever replaced
            except OSError:
                continue
            if self.cache.deserialize(found):
                # From anywhere else, they still have to be written to the first place.
                self._saved = found if file == self.files[0] else b""
                return
            logger.info("%s: not usable by this driver or version, kernels are compiled anew", file)

    def save(self) -> None:
        """Write the kernels compiled so far, if there are new ones; folders that all refuse them are a warning."""
        kernels = b"" if self.cache is None else bytes(memoryview(self.cache.serialize()))
        if kernels == self._saved:
            return
        self._saved, refused = kernels, ""
        for file in self.files:
            try:
                with locked(file.with_suffix(".lock"), "the kernel cache is in use", wait=True):
                    write_atomically(file, kernels)
            except (OSError, BuildError) as error:
                logger.info("%s: cannot be written: %s", file, error)
                refused = str(error)
            else:
                return
        logger.warning(
            "%s: cannot be written, so the next process compiles its kernels again: %s", self.files[-1], refused
        )
