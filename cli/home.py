"""The name `demo`, which stands for the bundle that `latentrt demo` made."""

from pathlib import Path

from latentrt.runtime.bundle.atomic_files import MANIFEST
from latentrt.runtime.cache import cache_folder

DEMO = "demo"


def demo_path() -> Path:
    """Where the demo's bundle is kept; it may not exist yet."""
    return cache_folder() / DEMO


def bundle_path(name: Path) -> Path:
    """A bundle's folder from what the user wrote: a path, or `demo` where no bundle of that name is at hand."""
    return demo_path() if str(name) == DEMO and not (name / MANIFEST).is_file() else name
