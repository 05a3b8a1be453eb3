"""Pictures and masks become arrays, or are refused in words that say what to do."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.drawing.inpainting import paste_back
from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.metadata import describe_picture
from latentrt.runtime.request.images import as_grey, as_rgb, check_lit, latent_mask, read_masks, read_pictures
from latentrt.runtime.request.size_checks import check_size
from latentrt.runtime.request.source import Source

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
LEVELS = PIXELS[..., 0]


def read(pictures: Any, width: int | None = None, height: int | None = None) -> np.ndarray:
    served = Limits(images="1", width="8:64:128", height="8:64:128", tokens="77", vae_images="1")
    return read_pictures(
        pictures, width, height, partial(check_size, limits=served, rebuild=lambda limits: "build-engine")
    )


@pytest.mark.parametrize("picture", [PIXELS, Image.fromarray(PIXELS), PIXELS / 255, (PIXELS / 255).astype(np.float32)])
def test_pictures_of_every_kind_are_the_same(picture: Any) -> None:
    found = read(picture)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, PIXELS.transpose(2, 0, 1)[None] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_are_converted(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    np.testing.assert_array_equal(read(image), read(image.convert("RGB")))


def test_sizes_are_the_first_pictures_or_those_asked() -> None:
    assert read([PIXELS, PIXELS[:, :16]]).shape == (2, 3, 16, 24)
    assert read(PIXELS, 32, None).shape == (1, 3, 16, 32)
    wanted = np.asarray(Image.fromarray(PIXELS).resize((32, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(read(PIXELS, 32, 8), read(wanted))


def test_the_size_is_checked_before_anything_is_resized() -> None:
    def refuse(width: int, height: int) -> None:
        raise RequestError(f"{width} x {height}")

    with pytest.raises(RequestError, match="10000000 x 16"):
        read_pictures(PIXELS, 10_000_000, None, refuse)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ([], "image: an empty list; give one picture, or one per picture to draw"),
        ("cat.png", "image: a str; it must be a PIL image or an array (height, width, 3)"),
        (LEVELS, "image: an array of shape [16, 24]; it must be (height, width, 3), red, green and blue. Several"),
        (PIXELS[None], "image: an array of shape [1, 16, 24, 3]; it must be (height, width, 3)"),
        (PIXELS.astype(int), "image: an array of int64 from 0 to 255; it must hold bytes, or floats from 0 to 1"),
        (PIXELS.astype(np.float32), "image: an array of float32 from 0.0 to 255.0; it must hold bytes, or floats"),
        (np.full((8, 8, 3), np.nan), "image: an array of float64 from nan to nan; it must hold bytes, or floats"),
        (Image.new("RGBA", (8, 8)), "image: it has an alpha channel. Put it on a background, or take its colours with"),
        (Image.new("LA", (8, 8)), "image: it has an alpha channel."),
        (
            Image.new("I", (8, 8), 70000),
            "image: a PIL image of mode I from 70000 to 70000; it must hold 0 to 255, or to",
        ),
        (Image.new("I", (8, 8), -1), "image: a PIL image of mode I from -1 to -1; it must hold 0 to 255, or to 65535"),
        (np.zeros((0, 8, 3), np.uint8), "image: an array of shape [0, 8, 3], which holds no pixels"),
        (Image.new("RGB", (0, 0)), "image: an image of 0 x 0, which holds no pixels"),
        (np.array([[["a", "b", "c"]]]), "image: an array of <U1; it must hold bytes, or floats from 0 to 1"),
        (np.full((1, 1, 3), None), "image: an array of object; it must hold bytes, or floats from 0 to 1"),
        (np.zeros((1, 1, 3), complex), "image: an array of complex128; it must hold bytes, or floats from 0 to 1"),
        (PIXELS[:13], "image: it has 24 x 13 pixels; height 13: must be a multiple of 8; the nearest are 8 and 16. Cr"),
        (PIXELS[:, :20], "image: it has 20 x 16 pixels; width 20: must be a multiple of 8; the nearest are 16 and 24."),
        (
            PIXELS[:4],
            "image: it has 24 x 4 pixels; height 4: must be a multiple of 8; the nearest that is served is ",
        ),
    ],
)
def test_pictures_that_are_refused(picture: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        read(picture)


@pytest.mark.parametrize("mask", [LEVELS, LEVELS / 255, LEVELS >= 128, Image.fromarray(LEVELS)])
def test_masks_of_every_kind_are_the_same(mask: Any) -> None:
    found = read_masks(mask, PIXELS, 24, 16)
    np.testing.assert_array_equal(found, (LEVELS >= 128)[None, None].astype(np.float32))


def test_a_mask_is_resized_with_its_picture() -> None:
    mask = np.zeros((16, 24), bool)
    mask[:, 12:] = True
    found = read_masks(mask, PIXELS, 48, 32)
    assert found.shape == (1, 1, 32, 48)
    np.testing.assert_array_equal(found[0, 0, :, ::2], np.repeat(mask, 2, axis=0))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (LEVELS[:8], "mask: 24 x 8 pixels, the image has 24 x 16. Make them the same"),
        ("mask.png", "mask: a str; it must be a PIL image or an array (height, width)"),
        (PIXELS, "mask: an array of shape [16, 24, 3]; it must be (height, width). Several masks are a list"),
        (LEVELS.astype(np.int32), "mask: an array of int32 from 0 to"),
        (Image.fromarray(LEVELS / np.float32(200)), "mask: a PIL image of mode F from 0.0 to "),
        (
            Image.fromarray(np.full((16, 24), np.nan, np.float32)),
            "mask: a PIL image of mode F from nan to nan; it must",
        ),
        (Image.new("LA", (24, 16)), "mask: it has an alpha channel; give the mask itself"),
        (np.zeros((0, 8), np.uint8), "mask: an array of shape [0, 8], which holds no pixels"),
        (Image.new("RGBA", (24, 16)), "mask: it has an alpha channel; give the mask itself, light where"),
    ],
)
def test_masks_that_are_refused(mask: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        read_masks(mask, PIXELS, 24, 16)


def test_a_latent_is_masked_as_its_upper_left_pixel_is() -> None:
    mask = np.zeros((1, 1, 16, 24), np.float32)
    mask[..., 8, 16] = mask[..., 1, 1] = 1
    np.testing.assert_array_equal(latent_mask(mask, 8), [[[[0, 0, 0], [0, 0, 1]]]])


def test_paste_back_is_exact_for_every_byte() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, 2)
    mask = np.zeros((8, 32), bool)
    mask[:, 16:] = True
    drawn = [Image.fromarray(255 - every), Image.fromarray(every)]
    source = Source(1.0, read(every), mask=read_masks(mask, every, 32, 8), paste_back=True)
    first, second = map(np.asarray, paste_back(drawn, source))
    np.testing.assert_array_equal(first, np.where(mask[..., None], 255 - every, every))
    np.testing.assert_array_equal(second, every)
    assert paste_back(drawn, Source(1.0, read(every))) is drawn
    assert paste_back(drawn, None) is drawn


def test_a_picture_whose_file_is_cut_off(tmp_path: Path) -> None:
    whole = tmp_path / "whole.bmp"
    Image.fromarray(PIXELS).save(whole)
    (tmp_path / "cut.bmp").write_bytes(whole.read_bytes()[:500])
    with (
        Image.open(tmp_path / "cut.bmp") as cut,
        pytest.raises(RequestError, match=r"^image: mode RGB, not readable \(image file is truncated"),
    ):
        read(cut)


# Ranges


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(LEVELS.astype(np.uint16) * np.uint16(257)),
        Image.fromarray(LEVELS.astype(np.int32) * 257),
        Image.fromarray(LEVELS).convert("I"),
        Image.fromarray(LEVELS).convert("F"),
        Image.fromarray(LEVELS / np.float32(255)),
    ],
    ids=["16 bits", "16 bits in I", "bytes in I", "bytes in F", "shares in F"],
)
def test_wide_grey_images_are_read_by_their_range(image: Image.Image) -> None:
    np.testing.assert_array_equal(as_rgb(image), np.stack([LEVELS] * 3, -1))
    np.testing.assert_array_equal(as_grey(image), LEVELS)


HALF = np.zeros((16, 24), np.uint8)
HALF[:, 8:] = 1


@pytest.mark.parametrize(
    "mask",
    [
        HALF,
        HALF.astype(np.int64),
        Image.fromarray(HALF),
        Image.fromarray(HALF).convert("P"),
        Image.fromarray(HALF).convert("RGB"),
        Image.fromarray(HALF.astype(np.float32)),
        Image.fromarray(HALF.astype(np.uint16)),
        Image.fromarray(HALF.astype(np.int32)),
        Image.fromarray(np.where(HALF, 65535, 1000).astype(np.uint16)),
        Image.fromarray(HALF * 255).convert("1"),
    ],
)
def test_a_mask_of_0_and_1_is_black_and_white(mask: Any) -> None:
    np.testing.assert_array_equal(read_masks(mask, PIXELS, 24, 16), HALF[None, None])


def test_a_palette_is_read_by_its_colours() -> None:
    image = Image.fromarray(HALF).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    np.testing.assert_array_equal(read_masks(image, PIXELS, 24, 16), 1 - HALF[None, None])


def test_a_picture_of_bytes_0_and_1_is_told(caplog: pytest.LogCaptureFixture) -> None:
    read(np.stack([HALF] * 3, -1))
    assert "image: its bytes are 0 and 1 of 255, a black picture; give floats if 1 is meant to be white" in caplog.text
    caplog.clear()
    read([np.zeros_like(PIXELS), PIXELS])
    assert not caplog.text


def test_masks_after_which_nothing_is_drawn() -> None:
    black, corner, right = np.zeros((3, 1, 1, 16, 24), np.float32)
    corner[..., 3:8, 3:8] = right[..., 8:] = 1
    check_lit(right, 8)
    with pytest.raises(RequestError, match=r"^mask: it is black, so nothing would be drawn anew\. Light areas"):
        check_lit(black, 8)
    with pytest.raises(RequestError, match=r"^mask 2: no upper left pixel of an 8 x 8 cell is light, so nothing"):
        check_lit(np.concatenate([right, corner]), 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(orientation: int, tmp_path: Path) -> None:
    exif, file = Image.Exif(), tmp_path / "photo.png"
    exif[0x112] = orientation
    Image.fromarray(PIXELS).save(file, exif=exif)
    with Image.open(file) as photo:
        upright = ImageOps.exif_transpose(photo)
        assert (upright.size == (16, 24)) is (orientation > 4)
        np.testing.assert_array_equal(read(photo), read(upright))
        wide = read_masks(photo, photo, *upright.size)
        np.testing.assert_array_equal(wide, read_masks(upright.convert("L"), upright, *upright.size))
        assert describe_picture(photo, "RGB").sha256 == describe_picture(upright, "RGB").sha256
        assert (describe_picture(photo, "L").width, photo.size) == (upright.width, (24, 16))
