"""The base of every record of a bundle, and the record of a file."""

from typing import Final

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of everything that is written to a bundle as JSON; frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


FORMAT: Final = 1
"""Version of the bundle's layout; readers refuse any other."""


class FileRecord(Record):
    """Size in bytes and hash of one file of the bundle."""

    size: int
    sha256: str
