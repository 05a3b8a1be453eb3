"""Bundles on disk: what is refused on opening, how files are written, what a key's difference says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hollow_bundles import write_hollow_build
from json_files import edit_json

from latentrt.cli.inspect import check_hashes
from latentrt.runtime.backends.targets import cpu_target
from latentrt.runtime.build_selection import select
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle import bundle as bundle_module
from latentrt.runtime.bundle.atomic_files import (
    BUILD,
    MANIFEST,
    describe_file,
    link_or_copy,
    read_record,
    replacing_folder,
    write_record,
)
from latentrt.runtime.bundle.base import FORMAT
from latentrt.runtime.bundle.manifest import Manifest
from latentrt.runtime.cache import cache_folder
from latentrt.runtime.errors import BundleError

KEY_NAMES = {
    "backend": "tensorrt",
    "backend_version": "10.14",
    "target": "sm89",
    "latentrt": "0.1.0",
    "options": lambda engine: "",
    "rewritten": False,
}


def refused(path):
    """The message with which a folder is refused."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    return str(caught.value)


def test_open_finds_every_file(bundle):
    opened = Bundle.open(str(bundle.path))
    assert opened.manifest == bundle.manifest
    assert opened.onnx("unet") == bundle.path / "onnx" / "fp16" / "unet.onnx"
    assert opened.builds() == {}


def test_a_folder_without_a_manifest(tmp_path):
    command = f"latentrt export CHECKPOINT -o {tmp_path}"
    assert refused(tmp_path) == f"{tmp_path}: not a bundle, it has no manifest.json. Make one with: {command}"


def test_a_path_that_does_not_exist(tmp_path):
    assert refused(tmp_path / "nothing").startswith(f"{tmp_path / 'nothing'}: not a bundle")


def test_a_manifest_of_a_newer_format(bundle):
    def newer(content):
        content["format"] = FORMAT + 1
        content["a field of the future"] = {}

    edit_json(bundle.path / MANIFEST, newer)
    remedy = "update latentrt, or export the checkpoint again"
    assert refused(bundle.path) == f"{bundle.path / MANIFEST}: format 2, this latentrt reads format 1; {remedy}"


@pytest.mark.parametrize("found", [0, -1, "1", None, 1.5, [1], True])
def test_a_manifest_of_an_unknown_format(bundle, found):
    edit_json(bundle.path / MANIFEST, lambda content: content.update(format=found))
    assert f"format {found!r}, this latentrt reads format 1; export the checkpoint again" in refused(bundle.path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "JSONDecodeError"),
        ('{"format": 1', "JSONDecodeError"),
        (b"\xff\xfe{}", "UnicodeDecodeError"),
        ("[]", "not a manifest, it states no format"),
        ("3", "not a manifest, it states no format"),
        ("{}", "not a manifest, it states no format"),
    ],
)
def test_a_manifest_that_is_no_manifest(bundle, content, reason):
    (bundle.path / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(bundle.path)
    assert message.startswith(f"{bundle.path / MANIFEST}: not ")
    assert reason in message
    assert message.endswith("; export the checkpoint again")


def test_a_manifest_cut_in_half(bundle):
    text = (bundle.path / MANIFEST).read_text()
    (bundle.path / MANIFEST).write_text(text[: len(text) // 2])
    assert "not readable as a manifest (JSONDecodeError" in refused(bundle.path)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda content: content.update(colour="red"), "field colour: Extra inputs are not permitted"),
        (lambda content: content["model"].update(colour="red"), "field model.colour: Extra inputs are not permitted"),
        (lambda content: content.pop("components"), "field components: Field required"),
        (lambda content: content.update(precision="fp8"), "field precision: Input should be 'fp16', 'fp32' or 'bf16'"),
        (
            lambda content: content["components"]["unet"].update(parameters="many"),
            "field components.unet.parameters: Input should be a valid integer",
        ),
    ],
)
def test_a_manifest_with_wrong_fields(bundle, change, where):
    edit_json(bundle.path / MANIFEST, change)
    message = refused(bundle.path)
    assert message.startswith(f"{bundle.path / MANIFEST}: {where}")
    assert message.endswith("The file is damaged; export the checkpoint again")


@pytest.mark.parametrize("width", ["0:8:16", "8:1001:2000", "wide"])
def test_a_manifest_with_impossible_limits(bundle, width):
    edit_json(bundle.path / MANIFEST, lambda content: content["limits"].update(width=width))
    message = refused(bundle.path)
    assert message.startswith(f"{bundle.path / MANIFEST}: width {width}: ")
    assert message.endswith("The file is damaged; export the checkpoint again")


def test_a_missing_file(bundle):
    file = bundle.path / "onnx" / "fp16" / "unet.onnx"
    file.unlink()
    command = f"latentrt export CHECKPOINT -o {bundle.path}"
    assert refused(bundle.path) == f"{file}: missing. Export the checkpoint again with: {command}"


def test_a_truncated_file(bundle):
    file = bundle.path / "onnx" / "fp16" / "unet.onnx"
    size = file.stat().st_size
    os.truncate(file, 3)
    assert refused(bundle.path).startswith(f"{file}: 3 bytes, the manifest says {size}. Export the checkpoint again")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "onnx/../../secret"])
def test_a_file_outside_the_bundle(bundle, name):
    record = {"size": 0, "sha256": "0" * 64}
    edit_json(bundle.path / MANIFEST, lambda content: content["files"].update({name: record}))
    assert refused(bundle.path).startswith(f"{bundle.path}: the manifest names {name!r}, which lies outside. Export")


def test_a_component_whose_file_is_not_listed(bundle):
    edit_json(bundle.path / MANIFEST, lambda content: content["files"].pop("onnx/fp16/unet.onnx"))
    message = f"{bundle.path / MANIFEST}: onnx/fp16/unet.onnx of unet is not among the files"
    assert refused(bundle.path).startswith(message)


def test_a_bundle_can_be_moved(bundle, tmp_path):
    write_hollow_build(bundle, "onnxruntime", cpu_target())
    moved = bundle.path.rename(tmp_path / "elsewhere")
    opened = Bundle.open(moved)
    check_hashes(opened)
    assert [build.name for build in opened.builds().values()] == [f"onnxruntime-fp16-{cpu_target()}"]


def test_builds_are_read_by_folder(bundle):
    here = write_hollow_build(bundle, "onnxruntime", cpu_target())
    there = write_hollow_build(bundle, "onnxruntime", "cpu-riscv64-base")
    assert bundle.builds() == {here.name: here, there.name: there}


def test_a_damaged_build_is_left_out_unless_it_is_named(bundle, caplog):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    file = bundle.path / "builds" / build.name / BUILD
    file.write_text("{")
    assert bundle.builds() == {}
    message = f"{file}: not readable as a manifest "
    assert message in caplog.text
    assert "The build is left out; remove its folder, or build it again" in caplog.text
    with pytest.raises(BundleError, match=f"^{re.escape(message)}.*; run build-engine again$"):
        select(bundle, build=build.name)


def test_write_record_round_trip(bundle, tmp_path):
    file = tmp_path / "new" / "folder" / MANIFEST
    write_record(file, bundle.manifest)
    assert read_record(file, Manifest) == bundle.manifest
    assert file.read_text().endswith("}\n")
    assert list(file.parent.iterdir()) == [file]


def test_write_record_that_fails_keeps_the_old_file(bundle, monkeypatch):
    file = bundle.path / MANIFEST
    before = file.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be written \(No space left on device\)"):
        write_record(file, bundle.manifest.model_copy(update={"latentrt": "9"}))
    assert file.read_bytes() == before
    assert not [path for path in bundle.path.iterdir() if path.name.startswith(".")]


def test_write_record_reaches_the_disk_before_it_gets_its_name(bundle, tmp_path, monkeypatch):
    file = tmp_path / MANIFEST
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(file.exists()))
    write_record(file, bundle.manifest)
    assert synced == [False]


def test_replacing_folder_makes_a_new_one(tmp_path):
    with replacing_folder(tmp_path / "deep" / "new") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "file").read_text() == "content"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_replacing_folder_replaces_an_old_one(tmp_path):
    target = tmp_path / "bundle"
    (target / "deep").mkdir(parents=True)
    (target / "deep" / "old").write_text("old")
    (target / MANIFEST).write_text("{}")
    with replacing_folder(target) as folder:
        (folder / "new").write_text("new")
        assert (target / "deep" / "old").read_text() == "old"
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_folder_keeps_the_old_one_on_an_error(tmp_path, error):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / MANIFEST).write_text("old")

    def fail_halfway():
        with replacing_folder(target) as folder:
            (folder / "new").write_text("new")
            raise error("halfway")

    with pytest.raises(error, match="halfway"):
        fail_halfway()
    assert [path.name for path in target.iterdir()] == [MANIFEST]
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_folder_puts_the_old_one_back_where_the_last_step_fails(tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / MANIFEST).write_text("old")
    rename = bundle_module.Path.rename

    def refuse_new(self, to):
        if ".new-" in self.name:
            raise OSError("no such luck")
        return rename(self, to)

    monkeypatch.setattr(bundle_module.Path, "rename", refuse_new)

    def replace():
        with replacing_folder(target) as folder:
            (folder / "new").write_text("new")

    with pytest.raises(BundleError, match=r"bundle: cannot be written \(no such luck\)"):
        replace()
    assert [path.name for path in target.iterdir()] == [MANIFEST]
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_folder_refuses_a_folder_that_is_no_bundle(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("years of work")

    def replace():
        with replacing_folder(tmp_path / "documents"):
            pass

    with pytest.raises(BundleError, match="documents: exists and is not a bundle; it would be lost"):
        replace()
    assert (tmp_path / "documents" / "thesis.txt").read_text() == "years of work"


def test_replacing_folder_tidies_up_after_killed_processes(tmp_path):
    """The retired folder comes back where the kill came between the two renames; running processes keep theirs."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".bundle.old-{ended.pid}", f".bundle.new-{ended.pid}", f".bundle.new-{os.getppid()}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(name)

    def fail():
        with replacing_folder(tmp_path / "bundle"):
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        fail()
    assert (tmp_path / "bundle" / MANIFEST).read_text() == f".bundle.old-{ended.pid}"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", f".bundle.new-{os.getppid()}"}


def test_replacing_folder_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with replacing_folder(bundle_module.Path("bundle")) as folder:
        (folder / "file").write_text("x")
        monkeypatch.chdir("/")
    assert (tmp_path / "bundle" / "file").is_file()


def test_keys_change_with_everything_that_makes_an_engine(bundle):
    names = KEY_NAMES
    specs = bundle.manifest.specs()
    key = bundle.keys(specs, **names)["unet"]
    assert key.difference(bundle.keys(specs, **names)["unet"]) is None
    for field in names.keys() - {"rewritten", "options"}:
        other = bundle.keys(specs, **names | {field: "another"})["unet"]
        assert key.difference(other) == f"{field} {names[field]}, needed another"
    other = bundle.keys(specs, **names | {"options": lambda engine: f"hard for {engine}"})["unet"]
    assert key.difference(other) == "options none, needed hard for unet"
    wide = bundle.manifest.specs(bundle.manifest.limits.replace(width="512:1024:1600", images="1:1:8"))
    assert key.difference(bundle.keys(wide, **names)["unet"]) == (
        "dims latent_width 64:128:192, rows 1:2:8, needed latent_width 64:128:200, rows 1:2:16"
    )


def test_a_key_keeps_to_its_component(bundle):
    """Other bounds for the VAE leave the U-Net's engine as it is."""
    names = KEY_NAMES
    own = bundle.keys(bundle.manifest.specs(), **names)
    other = bundle.keys(bundle.manifest.specs(bundle.manifest.limits.replace(vae_images="1:1:4")), **names)
    changed = [name for name, key in own.items() if key.difference(other[name])]
    assert changed == ["vae_decoder", "vae_encoder"]


def test_files_are_linked_and_copied_where_links_cannot_be(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    link_or_copy(source, tmp_path / "linked")
    assert (tmp_path / "linked").samefile(source)

    def refuse(_source, _target):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == b"weights"
    assert not (tmp_path / "copied").samefile(source)


def test_check_hashes_accepts_a_whole_bundle(bundle):
    write_hollow_build(bundle, "onnxruntime", cpu_target())
    check_hashes(bundle)


@pytest.mark.parametrize("name", ["onnx/fp16/unet.onnx", "tokenizer/vocab.json", "builds/{build}/unet.engine"])
def test_check_hashes_finds_one_changed_byte(bundle, name):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    file = bundle.path / name.format(build=build.name)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    opened = Bundle.open(bundle.path)
    with pytest.raises(BundleError, match=f"^{re.escape(str(file))}: its SHA-256 is not the manifest's"):
        check_hashes(opened)


def test_check_hashes_names_an_engine_file_that_is_gone(bundle):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    file = bundle.path / "builds" / build.name / "unet.engine"
    file.unlink()
    with pytest.raises(BundleError, match=f"^{re.escape(str(file))}: missing"):
        check_hashes(bundle)


def test_the_manifest_is_json_that_others_can_read(bundle):
    content = json.loads((bundle.path / MANIFEST).read_text())
    assert content["format"] == 1
    assert content["limits"]["width"] == "512:1024:1536"
    assert content["components"]["unet"]["inputs"]["sample"] == "float16[rows, 4, latent_height, latent_width]"


# What the system refuses, and paths


def test_a_bundle_is_found_after_a_change_of_the_folder(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle.path.parent)
    for name in (bundle.path.name, Path(bundle.path.name), f"./{bundle.path.name}/"):
        opened = Bundle.open(name)
        assert (opened.path, opened.name) == (bundle.path, bundle.path.name)
    monkeypatch.chdir(bundle.path)
    assert Bundle.open(".").name == bundle.path.name
    monkeypatch.chdir(bundle.path / "onnx")
    assert Bundle.open("..").name == bundle.path.name
    (tmp_path / "link").symlink_to(bundle.path)
    assert Bundle.open(tmp_path / "link").name == "link"
    relative = Bundle(Path("somewhere"), bundle.manifest)
    monkeypatch.chdir("/")
    assert relative.onnx("unet").is_absolute()


def test_the_cache_is_found_after_a_change_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable, folder in (("LATENTRT_HOME", tmp_path / "x"), ("XDG_CACHE_HOME", tmp_path / "x" / "latentrt")):
        monkeypatch.delenv("LATENTRT_HOME", raising=False)
        monkeypatch.setenv(variable, "x")
        assert cache_folder() == folder


def refuse(*arguments, **options):
    raise PermissionError(13, "Permission denied", "/somewhere")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("is_file", r"my-bundle: cannot be read \(Permission denied\)"),
        ("read_text", r"manifest\.json: not readable as a manifest \(PermissionError"),
        ("stat", r"cannot be read \(Permission denied\)"),
        ("glob", r"builds: cannot be read \(Permission denied\)"),
        ("open", r"manifest\.json: not readable as a manifest \(PermissionError"),
    ],
)
def test_a_system_that_refuses_to_read(bundle, monkeypatch, method, message):
    def read():
        opened = Bundle.open(bundle.path)
        opened.builds()
        describe_file(bundle.path / MANIFEST)

    read()
    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(BundleError, match=message):
        read()


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "\ud800"])
def test_names_that_no_file_can_have(path):
    with pytest.raises(BundleError, match=r"cannot be read \(|not a bundle"):
        Bundle.open(path)


@pytest.mark.parametrize("method", ["mkdir", "rename"])
def test_a_system_that_refuses_a_folder(tmp_path, method):
    def replace():
        with replacing_folder(tmp_path / "new"):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, method, refuse)
        with pytest.raises(BundleError, match=r"new: cannot be written \(Permission denied\)"):
            replace()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_hashed(bundle, monkeypatch):
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read \(Permission denied\)"):
        describe_file(bundle.path / MANIFEST)


def test_a_bundle_is_opened_through_the_folder_above(bundle, monkeypatch):
    monkeypatch.chdir(bundle.path / "onnx")
    assert Bundle.open("../../my-bundle").manifest == bundle.manifest


def test_of_a_link_the_folder_that_it_leads_to_is_replaced(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle.path)
    with replacing_folder(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in bundle.path.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", bundle.path.name]
