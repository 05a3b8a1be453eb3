"""Records on disk, changed as a test needs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_json(file: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
