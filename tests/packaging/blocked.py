"""`python blocked.py NAME,NAME CODE` runs CODE in an interpreter in which nobody can import the named modules.

For test_imports.py. It fails where one of them is loaded in the end nevertheless.
"""

import sys
from importlib.machinery import ModuleSpec
from typing import Any


class Hiding:
    """A meta path finder that finds what another one does, but for some packages, as if they were not installed."""

    def __init__(self, finder: Any, names: list[str]):
        self.finder, self.names = finder, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """None for the hidden ones."""
        hidden = name.partition(".")[0] in self.names
        found: ModuleSpec | None = None if hidden else self.finder.find_spec(name, path, target)
        return found


if __name__ == "__main__":
    blocked = sys.argv[1].split(",")
    sys.meta_path[:] = [Hiding(finder, blocked) for finder in sys.meta_path]
    try:
        exec(sys.argv[2])
    finally:
        loaded = [name for name in blocked if name in sys.modules]
        if loaded:
            print("loaded:", *loaded, file=sys.stderr)
            sys.exit(70)
