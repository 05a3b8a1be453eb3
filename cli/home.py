"""Where bundles are found, and the name `demo`, which stands for the bundle that `latentrt demo` made."""

from pathlib import Path

from latentrt.runtime.bundle.atomic_files import MANIFEST
from latentrt.runtime.cache import cache_folder

DEMO = "demo"


def is_bundle(path: Path) -> bool:
    """Whether a folder claims to be a bundle."""
    return (path / MANIFEST).is_file()


def demo_path() -> Path:
    """The folder of the demo's bundle, which may not exist yet."""
    return cache_folder() / DEMO


def bundle_path(name: Path) -> Path:
    """The folder of the bundle that a user names: a path, or `demo` unless a bundle here has that name."""
    return demo_path() if str(name) == DEMO and not is_bundle(name) else name
