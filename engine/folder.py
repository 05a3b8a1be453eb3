"""The folder of one build on disk, written so that a kill at any moment does no harm.

It holds `build.json` and the engine files named there. A new engine gets a new name and is listed in `unfinished.json`
as soon as it is complete; `build.json` is replaced when the last engine is. Until then the previous build stays intact,
and after a kill the next run finds every engine that was finished.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from shutil import rmtree

from latentrt.runtime.bundle.atomic_files import BUILD, KERNELS, check_sizes, describe_file, read_record, write_record
from latentrt.runtime.bundle.base import FileRecord
from latentrt.runtime.bundle.build_record import BuildRecord, EngineRecord
from latentrt.runtime.bundle.engine_key import EngineKey
from latentrt.runtime.cache import locked
from latentrt.runtime.errors import BundleError

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished.json"
LOCK = ".lock"
NEW = ".new"


class BuildFolder:
    """One build's folder within a bundle. Hold its lock while changing anything in it."""

    def __init__(self, bundle: Path, name: str):
        self.bundle = bundle
        self.path = bundle / "builds" / name

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from building here. Raises `BuildError` if one is building."""
        return locked(self.path / LOCK, f"{self.path}: another process is building here")

    def records(self) -> list[BuildRecord]:
        """`build.json` and `unfinished.json`, if they exist and can be read."""
        found = []
        for file in (self.path / BUILD, self.path / UNFINISHED):
            try:
                found += [read_record(file, BuildRecord)] if file.is_file() else []
            except BundleError as error:
                logger.warning("%s. Its engines are built anew", error)
        return found

    def finished(self, plan: BuildRecord, keys: Mapping[str, EngineKey]) -> BuildRecord | None:
        """The build in this folder, if it is the planned one and complete, and the folder holds nothing else."""
        records = self.records()
        if len(records) != 1 or records[0].limits != plan.limits or self.leftovers():
            return None
        whole = self.reusable(keys)
        return records[0] if whole.keys() == keys.keys() == records[0].engines.keys() else None

    def reusable(self, keys: Mapping[str, EngineKey]) -> dict[str, EngineRecord]:
        """The engines in this folder that have the required key and complete files."""
        found = [engine for record in self.records() for engine in record.engines.values()]
        return {e.key.component: e for e in found if e.key == keys.get(e.key.component) and self._is_whole(e)}

    def _is_whole(self, engine: EngineRecord) -> bool:
        try:
            check_sizes(self.bundle, engine.files, "It is built anew")
        except BundleError as error:
            logger.warning("%s", error)
            return False
        return True

    def leftovers(self) -> list[Path]:
        """Paths in this folder that belong to no build: replaced engines, and what a killed process left."""
        named = {self.bundle / file for record in self.records() for e in record.engines.values() for file in e.files}
        kept = {self.path / name for name in (LOCK, BUILD, UNFINISHED, KERNELS)} | named
        return sorted(set(self.path.iterdir()) - kept) if self.path.is_dir() else []

    def clean(self) -> None:
        """Remove the leftovers."""
        for path in self.leftovers():
            logger.debug("removing %s", path)
            if path.is_dir():
                rmtree(path)
            else:
                path.unlink()

    @contextmanager
    def new_files(self) -> Iterator[Path]:
        """An empty folder for one engine's files, on the same disk; it is removed when the block ends."""
        temporary = self.path / NEW
        rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
        finally:
            rmtree(temporary, ignore_errors=True)

    def stem(self, key: EngineKey) -> str:
        """`<component>-<hash of the key>`, with `-2` appended while an engine of that name is replaced by force."""
        name = f"{key.component}-{hashlib.sha256(key.model_dump_json().encode()).hexdigest()[:12]}"
        return f"{name}-2" if any(self.path.glob(f"{name}.*")) else name

    def adopt(self, temporary: Path, files: tuple[str, ...]) -> dict[str, FileRecord]:
        """Move finished files here; the file to load is moved last, when everything it refers to is in place."""
        described = {
            (self.path / name).relative_to(self.bundle).as_posix(): describe_file(temporary / name) for name in files
        }
        for name in reversed(files):
            (temporary / name).replace(self.path / name)
        return described

    def save(self, record: BuildRecord) -> None:
        """Record the engines that are finished so far."""
        write_record(self.path / UNFINISHED, record)

    def commit(self, record: BuildRecord) -> None:
        """Make this record the build, and remove everything it replaces, and the kernels of the engines before."""
        write_record(self.path / BUILD, record)
        rmtree(self.path / KERNELS, ignore_errors=True)
        (self.path / UNFINISHED).unlink(missing_ok=True)
        self.clean()
