"""A bundle on disk: opens and checks it, finds its files and builds, and knows the key that each engine must have."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote

from latentrt.runtime.bundle.atomic_files import BUILD, KERNELS, MANIFEST, check_sizes, read_record
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.build_record import BuildRecord
from latentrt.runtime.bundle.engine_key import EngineKey
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.lora_slots import LoraSlots, has_slots, recorded_slots
from latentrt.runtime.bundle.manifest import Manifest, port_table
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.bundle.unet_parts import component_of, passes_of, recorded_parts, replace_whole
from latentrt.runtime.cache import cache_folder
from latentrt.runtime.errors import BundleError, StaleBuildError, shown, told_as

logger = logging.getLogger(__name__)

DEMO = "demo"
"""The name of the bundle that `latentrt demo` makes."""


def is_bundle(path: Path) -> bool:
    """Whether a folder claims to be a bundle.

    Raises:
        BundleError: the system does not let us look.
    """
    with told_as(BundleError, path, "read"):
        return (path / MANIFEST).is_file()


def demo_folder() -> Path:
    """The folder of the demo's bundle, which may not exist yet."""
    return cache_folder() / DEMO


def bundle_folder(name: Path) -> Path:
    """The folder of the bundle that a user names: a path, or `demo` unless a bundle here has that name."""
    return demo_folder() if str(name) == DEMO and not is_bundle(name) else name


def _what_it_is(path: Path) -> str:
    """What a path is that is no bundle, and how to get one."""
    if path == demo_folder():
        return "the demo has no bundle yet. Make it with: latentrt demo"
    if (path / "model_index.json").is_file():
        return f"a checkpoint, not a bundle. Export it with: latentrt export {path} -o {path.name}-bundle"
    if path.is_file():
        return "a file, not the folder of a bundle. Make one with: latentrt export CHECKPOINT -o BUNDLE"
    return f"not a bundle, it has no {MANIFEST}. Make one with: latentrt export CHECKPOINT -o {path}"


class Bundle:
    """A bundle whose manifest was read and whose files all exist with the recorded sizes.

    Its path is absolute, so that what is loaded later is found after a change of the working folder, too.
    """

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path.absolute()
        self.manifest = manifest

    @property
    def name(self) -> str:
        """The folder's name, as the user wrote it."""
        return self.path.resolve().name if self.path.name == ".." else self.path.name

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Read the manifest and check that every file it names exists with the recorded size.

        `path`: the bundle's folder, or `demo` for the bundle that `latentrt demo` makes.

        Raises:
            BundleError: not a bundle, a newer format, a damaged manifest, a missing or truncated file.
        """
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise BundleError(f"bundle {shown(path)}: must be the path of a bundle's folder, as text or as a Path")
        path = bundle_folder(Path(path))
        if not is_bundle(path):
            raise BundleError(f"{path}: {_what_it_is(path)}")
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
        """Every build in the bundle, by its folder's name; one that cannot be read is warned of and left out."""
        with told_as(BundleError, self.path / "builds", "read"):
            files = sorted(self.path.glob(f"builds/*/{BUILD}"))
        found = {}
        for file in files:
            try:
                found[file.parent.name] = read_record(file, BuildRecord)
            except BundleError as error:
                logger.warning("%s. The build is left out; remove its folder, or build it again", error)
        return found

    def check_readable(self, build: str) -> None:
        """Raise `BundleError` if the record of a build cannot be read; a build that is not there is no error."""
        if (file := self.path / "builds" / build / BUILD).is_file():
            read_record(file, BuildRecord)

    def kernels(self, build: BuildRecord) -> dict[str, int]:
        """The kernels that were compiled for a build's engines: file name -> bytes, one for each version and GPU."""
        files = sorted((self.path / "builds" / build.name / KERNELS).glob("*.cache"))
        return {file.name: file.stat().st_size for file in files}

    def keys(
        self,
        specs: Mapping[str, ComponentSpec],
        lora: LoraSlots | None = None,
        *,
        rewritten: bool,
        options: Callable[[str], str],
        **backend: str,
    ) -> dict[str, EngineKey]:
        """The key that each engine must have; `lora` is the room that those with slots have.

        `rewritten`, `options` and `backend` (backend, backend_version, target, latentrt): see `backends.identity`.
        """
        return {
            name: EngineKey(
                component=name,
                content=self.manifest.content(component_of(name)),
                inputs=port_table(spec.inputs),
                outputs=port_table(spec.outputs),
                dims={dim.name: str(dim) for dim in spec.dims.values()},
                profiles=spec.profile_table,
                precision=self.manifest.components[component_of(name)].precision,
                options=options(name),
                passes=passes_of(name, rewritten=rewritten or has_slots(spec)),
                lora=str(lora) if has_slots(spec) else "",
                **backend,
            )
            for name, spec in specs.items()
        }

    def engine_specs(self, build: BuildRecord) -> dict[str, ComponentSpec]:
        """Ports and dims of every engine that a build must have, with the U-Net's parts where it was built in two.

        Raises:
            BundleError: the recorded ports of the parts do not fit.
        """
        keys = {name: engine.key for name, engine in build.engines.items()}
        specs = recorded_slots(self.manifest.specs(build.limits), keys)
        return replace_whole(specs, recorded_parts(specs, keys))

    def check_build(
        self, build: BuildRecord, *, rewritten: bool, options: Callable[[str], str], **backend: str
    ) -> None:
        """Check that every engine of the build has the key that it must have (see `keys`), and whole files.

        Raises:
            StaleBuildError: names the component, the field, what was found, what is needed, and the command to rebuild.
            BundleError: an engine's file is missing or truncated.
        """
        remedy = "Rebuild with: " + self.rebuild_command(build)
        try:
            specs = self.engine_specs(build)
        except BundleError as error:
            raise StaleBuildError(f"{self.path}, build {build.name}: {error}. {remedy}") from error
        for name, key in self.keys(specs, build.lora, rewritten=rewritten, options=options, **backend).items():
            engine = build.engines.get(name)
            difference = "is missing" if engine is None else engine.key.difference(key)
            if engine is None or difference:
                raise StaleBuildError(f"{self.path}, build {build.name}: {name} {difference}. {remedy}")
            check_sizes(self.path, engine.files, remedy)

    def build_command(
        self,
        backend: str,
        limits: Limits,
        *,
        target: str | None = None,
        options: BuildOptions | None = None,
        lora: LoraSlots | None = None,
    ) -> str:
        """The `build-engine` command for a build with these limits and this room for LoRAs."""
        changed = limits.options(besides=self.manifest.limits)
        chosen = [f"{option} {value}" for option, values in changed.items() for value in values]
        chosen += [f"--target {target}"] if target else []
        chosen += [f"{option} {value}" for option, value in (options.given if options else {}).items()]
        chosen += lora.options if lora else []
        return " ".join(["build-engine", quote(str(self.path)), "--backend", backend, *chosen])

    def rebuild_command(self, build: BuildRecord, limits: Limits | None = None) -> str:
        """The `build-engine` command for a build like this one, with its own limits or others."""
        return self.build_command(
            build.backend,
            limits or build.limits,
            target=build.target if build.named_target else None,
            options=build.options,
            lora=build.lora,
        )
