"""A bundle on disk: opened and checked, its files found, its manifests written so that a kill harms nothing."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from shutil import rmtree
from typing import TypeVar

from pydantic import ValidationError

from latentrt.runtime.errors import BundleError, RequestError, StaleBuildError
from latentrt.runtime.manifest import FORMAT, BuildRecord, EngineKey, FileRecord, Manifest, port_table
from latentrt.runtime.model import Limits, Record
from latentrt.runtime.parts import component_of, passes_of, recorded_parts, replace_whole
from latentrt.runtime.specs import ComponentSpec

MANIFEST = "manifest.json"
BUILD = "build.json"

RecordT = TypeVar("RecordT", bound=Record)


class Bundle:
    """A bundle whose manifest is read and whose files are all there with the sizes they should have."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Read the manifest and check that every file it names is there, whole.

        Raises:
            BundleError: no bundle, a newer format, a damaged manifest, a missing or truncated file.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise BundleError(
                f"{path}: not a bundle, it has no {MANIFEST}. Make one with: latentrt export CHECKPOINT -o {path}"
            )
        manifest = read_record(path / MANIFEST, Manifest)
        remedy = f"Export the checkpoint again with: latentrt export CHECKPOINT -o {path}"
        for component, record in manifest.components.items():
            if unlisted := [name for name in record.files if name not in manifest.files]:
                raise BundleError(f"{path / MANIFEST}: {unlisted[0]} of {component} is not among the files. {remedy}")
        check_sizes(path, manifest.files, remedy)
        return cls(path, manifest)

    def onnx(self, component: str) -> Path:
        """The component's ONNX file."""
        return self.path / self.manifest.components[component].files[0]

    def builds(self) -> dict[str, BuildRecord]:
        """Every build in the bundle, by its folder's name."""
        return {
            file.parent.name: read_record(file, BuildRecord) for file in sorted(self.path.glob(f"builds/*/{BUILD}"))
        }

    def keys(self, specs: Mapping[str, ComponentSpec], **backend: str) -> dict[str, EngineKey]:
        """The key that each engine must have. `backend`: backend, backend_version, target, latentrt."""
        return {
            name: EngineKey(
                component=name,
                content=self.manifest.content(component_of(name)),
                inputs=port_table(spec.inputs),
                outputs=port_table(spec.outputs),
                dims={dim.name: str(dim) for dim in spec.dims.values()},
                precision=self.manifest.components[component_of(name)].precision,
                passes=passes_of(name, backend["backend"]),
                **backend,
            )
            for name, spec in specs.items()
        }

    def engine_specs(self, build: BuildRecord) -> dict[str, ComponentSpec]:
        """Ports and dims of every engine that a build must have; the U-Net's parts, where it was built in two.

        Raises:
            BundleError: the recorded ports of the parts do not fit.
        """
        specs = self.manifest.specs(build.limits)
        keys = {name: engine.key for name, engine in build.engines.items()}
        return replace_whole(specs, recorded_parts(specs, keys))

    def check_build(self, build: BuildRecord, **backend: str) -> None:
        """Raise where an engine of the build is not the one that its key promises, or its files are not whole.

        Raises:
            StaleBuildError: names the component, the field, what was found, what is needed and the mending command.
            BundleError: an engine's file is missing or truncated.
        """
        remedy = "Rebuild with: " + self.build_command(build.backend, build.limits)
        try:
            specs = self.engine_specs(build)
        except BundleError as error:
            raise StaleBuildError(f"{self.path}, build {build.name}: {error}. {remedy}") from error
        for name, key in self.keys(specs, **backend).items():
            engine = build.engines.get(name)
            difference = "is missing" if engine is None else engine.key.difference(key)
            if engine is None or difference:
                raise StaleBuildError(f"{self.path}, build {build.name}: {name} {difference}. {remedy}")
            check_sizes(self.path, engine.files, remedy)

    def build_command(self, backend: str, limits: Limits) -> str:
        """The `build-engine` command that makes a build with these limits."""
        own = self.manifest.limits
        changed = [name for name in Limits.STEP if getattr(limits, name) != getattr(own, name)]
        ranges = [f"--{name.replace('_', '-')} {getattr(limits, name)}" for name in changed]
        return " ".join(["build-engine", quote(str(self.path)), "--backend", backend, *ranges])


def read_record(file: Path, kind: type[RecordT]) -> RecordT:
    """Read a manifest, refusing newer formats before looking at anything else.

    Raises:
        BundleError: not JSON, a newer format, or fields that are missing, unknown or of the wrong type.
    """
    remedy = "export the checkpoint again" if file.name == MANIFEST else "run build-engine again"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: not readable as a manifest ({type(error).__name__}: {error}); {remedy}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise BundleError(f"{file}: not a manifest, it states no format; {remedy}")
    found = values["format"]
    if type(found) is not int or found != FORMAT:
        newer = "update latentrt, or " if isinstance(found, int) and found > FORMAT else ""
        raise BundleError(f"{file}: format {found!r}, this latentrt reads format {FORMAT}; {newer}{remedy}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{file}: field {where}: {first['msg']}. The file is damaged; {remedy}") from error
    except RequestError as error:
        raise BundleError(f"{file}: {error}. The file is damaged; {remedy}") from error


def write_record(file: Path, record: Record) -> None:
    """Write a manifest so that, at any moment, the file is either the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(record.model_dump_json(indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def check_sizes(folder: Path, files: Mapping[str, FileRecord], remedy: str) -> None:
    """Raise `BundleError` for the first file that is outside the folder, missing or of another size."""
    for name, record in files.items():
        file = folder / name
        if ".." in file.parts or Path(name).is_absolute():
            raise BundleError(f"{folder}: the manifest names {name!r}, which lies outside. {remedy}")
        if not file.is_file():
            raise BundleError(f"{file}: missing. {remedy}")
        if file.stat().st_size != record.size:
            raise BundleError(f"{file}: {file.stat().st_size} bytes, the manifest says {record.size}. {remedy}")


def describe_file(file: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    with file.open("rb") as stream:
        return FileRecord(size=file.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling folder that takes `target`'s place when the block ends without an error.

    An error or a kill leaves what was at `target` untouched; what a killed process left beside it is tidied up.

    Raises:
        BundleError: `target` holds something that is not a bundle, which replacing would destroy.
    """
    target = target.absolute()
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise BundleError(f"{target}: exists and is not a bundle; it would be lost. Name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    _tidy(target)
    temporary = target.with_name(f".{target.name}.new-{os.getpid()}")
    retired = target.with_name(f".{target.name}.old-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            target.rename(retired)
        temporary.rename(target)
    except BaseException:
        if retired.exists() and not target.exists():
            retired.rename(target)
        raise
    finally:
        rmtree(temporary, ignore_errors=True)
        rmtree(retired, ignore_errors=True)


def _tidy(target: Path) -> None:
    """Bring back the old folder where a kill came between the two renames; remove what else killed processes left."""
    for kind in ("old", "new"):
        for left in target.parent.glob(f".{target.name}.{kind}-*"):
            process = left.name.rpartition("-")[2]
            if process.isdigit() and not (process != str(os.getpid()) and _runs(int(process))):
                if kind == "old" and not target.exists():
                    left.rename(target)
                rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
