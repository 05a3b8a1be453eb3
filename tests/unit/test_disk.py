"""Where bundles are written: what is found before the work, and what a disk says during it."""

import errno
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from graph_bundles import write_graph_bundle
from typer.testing import CliRunner

from latentrt.cli.main import application
from latentrt.engine import build as building
from latentrt.engine.build import build_engines
from latentrt.export import exporter
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.exporter import component_precisions, export_bundle, least_bytes
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import bundle_target, replacing_folder
from latentrt.runtime.bundle.disk import check_space, check_target, existing_folder
from latentrt.runtime.errors import BuildError, BundleError, CheckpointError, LatentRTError, RequestError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))


def write(tmp_path: Path, kind: str) -> Path:
    """A place where no bundle can be."""
    if kind == "file as parent":
        (tmp_path / "file").write_text("kept")
        return tmp_path / "file" / "bundle"
    if kind == "file far above":
        (tmp_path / "file").write_text("kept")
        return tmp_path / "file" / "more" / "bundle"
    if kind == "dangling link":
        (tmp_path / "link").symlink_to("/nowhere/at/all")
        return tmp_path / "link"
    if kind == "dangling link above":
        (tmp_path / "link").symlink_to("/nowhere/at/all")
        return tmp_path / "link" / "bundle"
    if kind == "a ring of links":
        (tmp_path / "link").symlink_to(tmp_path / "link")
        return tmp_path / "link"
    if kind == "a file":
        (tmp_path / "file").write_text("kept")
        return tmp_path / "file"
    if kind == "a folder":
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("kept")
        return tmp_path / "mine"
    return tmp_path / {"long": "x" * 300, "long with a process": "x" * 250, "long folder": f"{'x' * 300}/b"}[kind]


MESSAGES = {
    "file as parent": "file is a file, not a folder. Name another folder",
    "file far above": "file is a file, not a folder. Name another folder",
    "dangling link": "a link to /nowhere/at/all, where nothing is. Name a folder instead",
    "dangling link above": "link is a link to /nowhere/at/all, where nothing is",
    "a ring of links": "a link to ",
    "a file": "exists and is not a bundle; it would be lost. Name another folder",
    "a folder": "exists and is not a bundle; it would be lost. Name another folder",
    "long": "no place for a bundle (File name too long). Name another folder",
    "long with a process": "the name is too long for this disk. Name a shorter one",
    "long folder": "no place for a bundle (File name too long). Name another folder",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_places_where_no_bundle_can_be(tmp_path: Path, kind: str) -> None:
    """Before the checkpoint is even looked for; nothing is made and nothing lost."""
    target = write(tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError) as caught:
        bundle_target(target)
    assert str(caught.value).startswith(f"{target}: ")
    assert MESSAGES[kind] in str(caught.value)
    for command in (["export", "/no/checkpoint"], ["build-engine", "/no/checkpoint", "--backend", "onnxruntime"]):
        result = CliRunner().invoke(application(), [*command, "-o", str(target)])
        assert str(result.exception) == str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BundleError, match=f"^{tmp_path / 'new' / 'b'}: {tmp_path} cannot be written: permission is"):
        check_target(tmp_path / "new" / "b")


def test_a_link_stays_and_what_it_leads_to_is_renewed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "bundle").symlink_to("disk")
    with replacing_folder(tmp_path / "bundle") as folder:
        (folder / "manifest.json").write_text("{}")
    assert (tmp_path / "bundle").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "disk"]


def test_places_that_are_yet_to_be_made(tmp_path: Path) -> None:
    assert check_target(tmp_path / "a" / "b" / "c") == tmp_path / "a" / "b" / "c"
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    assert not (tmp_path / "a").exists()


def test_space_is_estimated_with_figures(tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(BundleError, match=r"b: the export needs at least 5\.1 GB there, and its disk has 0\.0 MB free"):
        check_space(tmp_path / "b", int(5.1e9), "the export")


def test_an_export_says_what_it_needs_before_it_begins(tmp_path: Path, full_disk: None) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "sd15", "sd15"))
    fp16, fp32 = (least_bytes(checkpoint, component_precisions(name, "auto")) for name in ("fp16", "fp32"))
    weights = sum(file.stat().st_size for file in (tmp_path / "sd15").glob("*/*.safetensors"))
    assert weights / 2 < fp32 == 2 * fp16 < weights
    with pytest.raises(BundleError, match=r"the export needs at least .* MB there"):
        export_bundle(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EIO])
def test_errors_of_the_disk_during_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "sd15", "sd15", weights=False), 0)
    old = write_graph_bundle(tmp_path / "bundle").path

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), "unet.onnx")

    monkeypatch.setattr(exporter.ComponentExporter, "export", fail)
    with pytest.raises(BundleError, match=rf"^unet\.onnx: {os.strerror(number)}\. What was there before is untouched$"):
        export_bundle(checkpoint, old)
    assert Bundle.open(old).manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "sd15"]


def test_a_build_says_what_it_needs_before_it_begins(tmp_path: Path, full_disk: None) -> None:
    bundle = write_graph_bundle(tmp_path / "bundle")
    least = 0.8 * sum(file.size for file in bundle.manifest.files.values()) / 1e6
    with pytest.raises(BuildError, match=rf"cpu.*: the build needs at least {least:.1f} MB there"):
        build_engines(bundle, "onnxruntime", target="cpu-any")
    assert not (bundle.path / "builds").exists()


def test_errors_of_the_disk_during_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_graph_bundle(tmp_path / "bundle")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "unet.engine")

    monkeypatch.setattr(building, "build_one", fail)
    with pytest.raises(BuildError, match=r"^unet\.engine: No space left on device\. What was there before"):
        build_engines(bundle, "onnxruntime")


@pytest.mark.parametrize("option", ["", "--config", "--tokenizer", "--unet", "--vae"])
def test_names_that_no_file_can_have(tmp_path: Path, option: str) -> None:
    folder, name = write_checkpoint(tmp_path / "sd15", "sd15", weights=False), "x" * 300
    options = {option.removeprefix("--"): Path(name)} if option else {}
    with pytest.raises(CheckpointError, match=rf"{name}.*: (cannot be read|no such file)"):
        Checkpoint.open(folder if option else name, 0, **options)


def test_files_that_vanish_during_the_work(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "sd15", "sd15"))
    file = tmp_path / "sd15" / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    with pytest.raises(CheckpointError, match=f"^{file.parent}: diffusion_pytorch_model.safetensors or .* is missing"):
        checkpoint.weights_sha256()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--backend", "tensorrt"], "CUDA|tensorrt"), (["--backend", "onnxruntime", "--target", "sm1"], "target sm1")],
)
def test_what_cannot_be_built_for_is_said_before_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr(exporter, "export_bundle", lambda *_, **__: pytest.fail("it was exported"))
    folder = write_checkpoint(tmp_path / "sd15", "sd15", weights=False)
    command = ["build-engine", str(folder), "-o", str(tmp_path / "b"), "--random-weights", "0", *options]
    result = CliRunner().invoke(application(), command)
    assert isinstance(result.exception, LatentRTError)
    assert re.search(message, str(result.exception))


def test_samples_are_read_before_the_work(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "sd15", "sd15", weights=False), 0)
    for samples in (tmp_path / "none", tmp_path / "sd15"):
        with pytest.raises(RequestError, match=f"^--samples {samples}: (not a folder|holds no image)"):
            export_bundle(checkpoint, tmp_path / "bundle", samples=samples)


def test_a_disk_that_fills_while_onnx_runtime_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's own words for it are a stack of C++ names."""
    import onnxruntime

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : graph.cc:5511 onnx::GraphProto")

    bundle = write_graph_bundle(tmp_path / "bundle")
    free = iter([10**9, 10**9, *[0] * 9])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, next(free)))
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(
        BuildError, match=r"\.onnx: cannot be written, its disk is full\. Make room, or move the bundle$"
    ):
        build_engines(bundle, "onnxruntime")
