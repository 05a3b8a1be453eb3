"""`python blocked.py NAME,NAME CODE` runs CODE in an interpreter in which nobody can import the named modules.

For test_imports.py. It fails where one of them is loaded in the end nevertheless.
"""

import sys
from importlib.machinery import ModuleSpec


class Block:
    """A meta path finder that refuses modules."""

    def __init__(self, names: list[str]):
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Raise for the blocked ones, leave the others to the other finders."""
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


if __name__ == "__main__":
    blocked = sys.argv[1].split(",")
    sys.meta_path.insert(0, Block(blocked))
    try:
        exec(sys.argv[2])
    finally:
        loaded = [name for name in blocked if name in sys.modules]
        if loaded:
            print("loaded:", *loaded, file=sys.stderr)
            sys.exit(70)
