"""Picture files of every format: their texts come back, where other programs look for them, and streams."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image, features

from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.formats import LONGEST_EXIF, read_texts
from latentrt.runtime.record.metadata import BundleNote, Metadata
from latentrt.runtime.record.picture_files import read_request, save_images
from latentrt.runtime.record.result import Result
from latentrt.runtime.record.webui import Parameters, write

PICTURE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
BUNDLE = BundleNote(
    name="sdxl", weights_sha256="0123456789abcdef", precision="fp16", backend="tensorrt", device="cuda:0", build="b"
)
SETTINGS = {"steps": 30, "sampler": "euler", "guidance": 5.0, "seed": [7, 8], "images": 2, "width": 64, "height": 48}
AVIF = pytest.param(".avif", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"))
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", AVIF]


def metadata(prompt: str = "猫 “quoted”, (é:1.2)\nNegative prompt: x") -> Metadata:
    return Metadata(latentrt="0.1.0", bundle=BUNDLE, prompt=(prompt,), settings=SETTINGS, pictures=2)


def result(**more: Any) -> Result:
    return Result([PICTURE], None, {}, None, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    files = save_images([PICTURE, PICTURE], tmp_path / f"a{suffix}", metadata())
    assert [file.name for file in files] == [f"a-1{suffix}", f"a-2{suffix}"]
    for number, file in enumerate(files, 1):
        own = metadata().model_copy(update={"picture": number})
        assert read_request(file) == own
        assert read_texts(file)["parameters"] == write(own)
        with Image.open(file) as image:
            assert (image.size, image.mode) == (PICTURE.size, "RGB")


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_parameters_stand_where_the_web_interface_puts_them(tmp_path: Path, suffix: str) -> None:
    """As it reads them: eight bytes that name the characters, then UTF-16, the high byte first."""
    (file,) = save_images([PICTURE], tmp_path / f"a{suffix}", metadata())
    with Image.open(file) as image:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf_16_be") == write(metadata())


TEXT = "a cat 猫\nSteps: 30, Sampler: Euler, CFG scale: 5, Seed: 7, Size: 64x48"
COMMENTS = {
    "big-endian": b"UNICODE\0" + TEXT.encode("utf-16-be"),
    "little-endian": b"UNICODE\0" + TEXT.encode("utf-16-le"),
    "with its mark": b"UNICODE\0" + TEXT.encode("utf-16"),
    "ASCII": b"ASCII\0\0\0" + TEXT.encode(),
    "undefined": bytes(8) + TEXT.encode(),
    "without its kind": TEXT.encode(),
}


@pytest.mark.parametrize("comment", COMMENTS.values(), ids=COMMENTS)
def test_comments_as_programs_write_them(tmp_path: Path, comment: bytes) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    found = read_request(tmp_path / "a.jpg")
    assert isinstance(found, Parameters)
    assert (found.prompt, found.settings["seed"], found.settings["steps"]) == ("a cat 猫", 7, 30)


@pytest.mark.parametrize("comment", [b"UNICODE\0", b"ASCII\0\0\0" + bytes(40), b""])
def test_a_comment_that_is_empty_says_nothing(tmp_path: Path, comment: bytes) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(RequestError, match=r"a\.jpg: it does not say how it was drawn"):
        read_request(tmp_path / "a.jpg")


def test_a_request_that_is_too_long_for_a_jpeg(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (file,) = save_images([PICTURE], tmp_path / "a.jpg", metadata("word " * (LONGEST_EXIF // 14)))
    assert read_texts(file).keys() == {"parameters"}
    assert "a.jpg: the request is too long for a JPEG, which holds its `parameters` alone" in caplog.text
    (file,) = save_images([PICTURE], tmp_path / "b.jpg", metadata("word " * LONGEST_EXIF))
    assert read_texts(file) == {}
    assert "b.jpg: the request is too long for a JPEG, which does not say how it was drawn" in caplog.text
    for suffix in (".webp", ".png"):
        (file,) = save_images([PICTURE], tmp_path / f"c{suffix}", metadata("word " * LONGEST_EXIF))
        assert read_request(file) == metadata("word " * LONGEST_EXIF)


def test_quality(tmp_path: Path) -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    for suffix in ("jpg", "webp", *(["avif"] if features.check("avif") else [])):
        sizes = []
        for quality in (10, None, 100):
            (file,) = save_images([noise], tmp_path / f"a.{suffix}", quality=quality)
            sizes.append(file.stat().st_size)
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[1] < sizes[2]
    (file,) = save_images([noise], tmp_path / "b.webp", quality=100)
    with Image.open(file) as image:
        assert image.convert("RGB").tobytes() == noise.tobytes()


@pytest.mark.parametrize("quality", [0, 101, 9.5, "high", True])
def test_a_quality_that_there_is_not(quality: Any) -> None:
    with pytest.raises(RequestError, match=r"quality .*: must be a whole number from 1 to 100"):
        result().save(io.BytesIO(), quality=quality)


def test_a_stream_gets_one_picture() -> None:
    stream = io.BytesIO()
    assert result(metadata=metadata()).save(stream) == []
    with Image.open(stream) as image:
        assert image.format == "PNG"
        assert json.loads(image.text["latentrt"])["settings"]["steps"] == 30  # type: ignore[attr-defined]
    for name in ("jpeg", "WebP"):
        stream = io.BytesIO()
        result().save(stream, format=name)
        with Image.open(stream) as image:
            assert image.format == name.upper()


def test_a_format_by_name_wins_over_the_suffix(tmp_path: Path) -> None:
    result().save(tmp_path / "a.tmp", format="jpeg")
    with Image.open(tmp_path / "a.tmp") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize("stream", [io.StringIO(), open("/dev/null", "rb"), open("/dev/full", "wb", buffering=0)])  # noqa: SIM115
def test_streams_that_take_no_picture(stream: Any) -> None:
    with pytest.raises(RequestError, match=r"^stream: cannot be written \(.*\)\. It must be open, and take bytes$"):
        result().save(stream)
    stream.close()


def test_two_pictures_and_one_stream() -> None:
    with pytest.raises(RequestError, match=r"^stream: takes one picture, and there are 2\."):
        Result([PICTURE] * 2, None, {}, None).save(io.BytesIO())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "a.gif",
            {},
            "the suffix says how a picture is written, and must be one of .png, .jpg, .jpeg, .webp, .avif; name",
        ),
        ("a", {}, "name it a.png"),
        ("a.png", {"format": "tiff"}, "format 'tiff': must be one of png, jpeg, webp, avif"),
        ("a.png", {"format": 5}, "format 5: must be one of"),
    ],
)
def test_formats_that_there_are_not(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        result().save(tmp_path / name, **options)
    assert message in str(caught.value)
    assert [*tmp_path.iterdir()] == []


def test_a_picture_that_is_too_large_for_its_format(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="WEBP takes up to 16383 pixels a side; write a PNG"):
        save_images([Image.new("RGB", (16_384, 1))], tmp_path / "a.webp")


@pytest.mark.parametrize("cut", [0, 3, 40, -30])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_files_that_are_cut_off(tmp_path: Path, suffix: str, cut: int) -> None:
    (file,) = save_images([Image.effect_noise((64, 64), 80).convert("RGB")], tmp_path / f"a{suffix}", metadata())
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(RequestError, match=r"a\.\w+: (not readable as a picture|it does not say how)"):
        read_request(file)
