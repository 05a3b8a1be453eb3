"""What every record of a bundle is made of: frozen, strict, with the size and hash of its files."""

from typing import Final

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of everything that is written to a bundle: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


FORMAT: Final = 1
"""Version of the bundle's layout. A reader refuses newer ones."""


class FileRecord(Record):
    """One file of the bundle."""

    size: int
    sha256: str
