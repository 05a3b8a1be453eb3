"""Where latentrt keeps what it makes without being told where: `LATENTRT_HOME`, or the user's cache folder."""

import os
from pathlib import Path

from latentrt.runtime.bundle import MANIFEST
from latentrt.runtime.cache import cache_folder

DEMO = "demo"


def home() -> Path:
    """The folder, which may not exist yet."""
    named = os.environ.get("LATENTRT_HOME")
    return Path(named) if named else cache_folder()


def bundle_path(name: Path) -> Path:
    """A bundle's folder from what the user wrote: a path, or `demo` for the bundle that `latentrt demo` made."""
    return home() / DEMO if str(name) == DEMO and not (name / MANIFEST).is_file() else name
