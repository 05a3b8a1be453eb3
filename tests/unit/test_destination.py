"""Where `-o` puts pictures: formats by suffix, folders, fields, stdout; and what is never overwritten."""

import errno
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from latentrt.cli.destination import Destination
from latentrt.runtime.cache import write_atomically
from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.result import Result

PICTURE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(output: str | None, seeds: tuple[int, ...] = (7,), **options: Any) -> list[str]:
    """Check and write pictures of these seeds; the files' names."""
    destination = Destination(output, **options)
    destination.check(len(seeds))
    values = [{"seed": seed, "sampler": "euler", "steps": 4, "width": 64, "height": 48} for seed in seeds]
    return [str(file) for file in destination.write([PICTURE] * len(seeds), values)]


@pytest.mark.parametrize(
    ("output", "seeds", "names"),
    [
        ("a.png", (7,), ["a.png"]),
        ("a.jpg", (7, 8), ["a-1.jpg", "a-2.jpg"]),
        ("new/folder/a.webp", (7,), ["new/folder/a.webp"]),
        ("new/", (7, 9), ["new/00001-7.png", "new/00002-9.png"]),
        ("{seed}.png", (7, 9), ["7.png", "9.png"]),
        ("{seed}.png", (7, 7), ["7-1.png", "7-2.png"]),
        ("{sampler}-{steps}-{width}x{height}.png", (7,), ["euler-4-64x48.png"]),
        ("{sampler}/{n:03}.png", (7, 7), ["euler/001.png", "euler/002.png"]),
        ("a{{b}}.png", (7,), ["a{b}.png"]),
        (None, (7,), ["out.png"]),
        (None, (7, 7), ["out-1.png", "out-2.png"]),
    ],
)
def test_names(output: str | None, seeds: tuple[int, ...], names: list[str]) -> None:
    assert written(output, seeds) == names
    assert all(Path(name).is_file() for name in names)
    assert sorted(str(path) for path in Path().rglob("*") if path.is_file()) == sorted(names)


def test_numbers_go_on() -> None:
    assert written(None) + written(None) + written(None, (7, 7)) == ["out.png", "out-1.png", "out-2.png", "out-3.png"]
    Path("f").mkdir()
    assert written("f") + written("f", (5,)) == ["f/00001-7.png", "f/00002-5.png"]
    Path("f/00009-1.png").touch()
    assert written("f/", (5,)) == ["f/00010-5.png"]
    assert written("b{n}.png") + written("b{n}.png") == ["b1.png", "b2.png"]


def test_nothing_is_overwritten_without_force() -> None:
    Path("a.png").write_text("mine")
    with pytest.raises(RequestError, match=r"^a\.png: exists\. Add --force to replace it, or name .* a-\{n\}\.png$"):
        Destination("a.png").check()
    Path("b-2.png").write_text("mine")
    with pytest.raises(RequestError, match=r"^b-2\.png: exists"):
        Destination("b.png").check(2)
    assert Path("a.png").read_text() == "mine"
    assert written("a.png", force=True) == ["a.png"]
    assert written(None, force=True) + written(None, force=True) == ["out.png", "out.png"]


def test_a_name_that_is_taken_while_it_draws(caplog: pytest.LogCaptureFixture) -> None:
    destination = Destination("a.png")
    destination.check()
    Path("a.png").write_text("mine")
    (file,) = destination.write([PICTURE], [{"seed": 1}])
    assert (str(file), Path("a.png").read_text()) == ("a-2.png", "mine")
    assert "a.png: exists; the picture is written to a-2.png" in caplog.text


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("name", ["photo.png", "link.png", "sub/../photo.png"])
def test_what_is_read_is_never_overwritten(force: bool, name: str) -> None:
    Path("photo.png").write_text("mine")
    Path("link.png").symlink_to("photo.png")
    Path("sub").mkdir()
    with pytest.raises(RequestError, match=r"it is read for this picture, and is never overwritten"):
        Destination(name, force=force).check(1, [Path("photo.png")])
    (file,) = Destination("{seed}.png", force=True).write([PICTURE], [{"seed": "photo"}], inputs=[Path("photo.png")])
    assert (str(file), Path("photo.png").read_text()) == ("photo-2.png", "mine")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("{colour}.png", "{colour} in {colour}.png: it may hold {n}, {seed}, {sampler}, {steps}, {width}, {height}"),
        ("{n}/a.png", "{n} in {n}: it may hold {seed}, {sampler}"),
        ("{}.png", "{} in {}.png: it may hold"),
        ("{seed.png", "{seed.png: expected '}' before end of string"),
        ("{seed!x}.png", "{seed!x}.png: not a name with fields"),
        ("{seed:%Y}.png", "{seed:%Y}.png: not a name with fields"),
        ("", "an empty name; leave -o out for out.png"),
    ],
)
def test_names_with_fields_that_there_are_not(output: str, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=re.escape(message)):
        Destination(output).check()


@pytest.mark.parametrize("output", ["{n}", "{seed}.{sampler}", "a.png.{n}", "a", ".png"])
def test_names_without_a_format(output: str) -> None:
    with pytest.raises(RequestError, match=rf"^{re.escape(output)}: the suffix says how a picture is written"):
        Destination(output).check(2)
    assert os.listdir() == []


def test_stdout_takes_one_picture(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(typer.BadParameter, match="- takes one picture, not 2"):
        Destination("-").check(2)
    assert written("-") == []
    with Image.open(io.BytesIO(capsysbinary.readouterr().out)) as image:
        assert (image.format, image.tobytes()) == ("PNG", PICTURE.tobytes())


# Links, and systems that refuse


def test_of_a_link_what_it_leads_to_is_renewed() -> None:
    Path("data").mkdir()
    Path("data/real.png").write_text("old")
    os.chmod("data/real.png", 0o640)
    Path("link.png").symlink_to("data/real.png")
    Path("dangling.jpg").symlink_to("data/new.jpg")
    written("link.png")
    written("dangling.jpg")
    assert Path("link.png").is_symlink()
    assert Path("dangling.jpg").is_symlink()
    assert sorted(os.listdir("data")) == ["new.jpg", "real.png"]
    assert sorted(os.listdir()) == ["dangling.jpg", "data", "link.png"]
    assert os.stat("data/real.png").st_mode & 0o777 == 0o640
    with Image.open("data/real.png") as image:
        assert image.tobytes() == PICTURE.tobytes()


def test_a_link_into_nowhere() -> None:
    Path("file").touch()
    Path("a.png").symlink_to("file/a.png")
    with pytest.raises(RequestError, match=r"file: cannot be made \(File exists\)"):
        Destination("a.png").check()


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
def test_a_disk_that_is_full_leaves_what_was_there(step: str) -> None:
    Path("a.png").write_text("old")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/.temporary")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, refuse)
        with pytest.raises(RequestError, match=r"^a\.png: cannot be written \(No space left on device\)$"):
            Result([PICTURE], None, {}, None).save("a.png")  # type: ignore[arg-type]
    assert (os.listdir(), Path("a.png").read_text()) == (["a.png"], "old")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a") as caught:
        write_atomically(tmp_path / "file" / "a", b"x")
    assert caught.value.filename == str(tmp_path / "file" / "a")


def test_a_device_is_written_to() -> None:
    write_atomically(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_atomically(Path("/dev/full"), b"x" * 100_000)


def test_what_was_drawn_is_not_lost(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is there when it is checked, and cannot be written any more when the pictures are drawn."""
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    destination = Destination("out/a.jpg")
    destination.check(2)
    Path("out").rmdir()
    Path("out").touch()
    with pytest.raises(RequestError, match=r"out/a-1\.jpg: cannot be written .*\. What was drawn is in ") as caught:
        destination.write([PICTURE, PICTURE], [{"seed": 1}, {"seed": 1}])
    folder = Path(str(caught.value).rpartition(" is in ")[2])
    assert sorted(os.listdir(folder)) == ["a-1-1.png", "a-1-2.png"]
    with Image.open(folder / "a-1-2.png") as image:
        assert image.tobytes() == PICTURE.tobytes()
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    with pytest.raises(RequestError, match=r"^out/a-1\.jpg: cannot be written \([^.]*\)$"):
        destination.write([PICTURE, PICTURE], [{"seed": 1}, {"seed": 1}])
