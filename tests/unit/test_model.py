"""Facts of a checkpoint and the ranges of requests: texts, multiples, defaults, and what is refused."""

import re

import pytest
from hollow_bundles import SDXL
from pydantic import ValidationError

from latentrt.runtime.bundle.limits import Limits, parse_range
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import Dim
from latentrt.runtime.errors import RequestError

RANGES = {"images": "1:1:4", "width": "512:1024:1536", "height": "512:1024:1536", "tokens": "77:77:231"} | {
    "vae_images": "1:1:1"
}
UNBOUND = {"profiles": (), "guidance": "any"}
"""The limits that are no ranges, at their defaults."""


def test_widths_of_two_encoders_add_up():
    assert SDXL.context_width == 768 + 1280
    assert SDXL.pooled_width == 1280


def test_model_round_trip():
    assert Model.model_validate_json(SDXL.model_dump_json()) == SDXL


def test_model_refuses_unknown_fields():
    with pytest.raises(ValidationError, match="flavour"):
        Model(**SDXL.model_dump(), flavour="sour")


def test_model_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        SDXL.family = "sd15"


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        ("512:1024:1536", (512, 1024, 1536)),
        ("512:1024", (512, 1024, 1024)),
        ("1024", (1024, 1024, 1024)),
        (1024, (1024, 1024, 1024)),
        (" 8 : 16 : 24 ", (8, 16, 24)),
    ],
)
def test_ranges_as_text(value, bounds):
    assert parse_range("width", value) == Dim("width", *bounds)
    assert Limits(**RANGES | {"width": value}).bounds("width") == bounds


def test_a_range_may_be_a_dim():
    dim = Dim("width", 8, 16, 24)
    assert parse_range("width", dim) is dim


@pytest.mark.parametrize("value", ["", "wide", "1:2:3:4", "512:", ":512", "512-1024", "1.5", None, "0x10"])
def test_a_text_that_is_no_range(value):
    message = f"width {value}: a range is written min:opt:max, min:max or one number"
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        Limits(**RANGES | {"width": value})


@pytest.mark.parametrize("value", ["0", "-8", "1024:512", "512:2048:1024", "0:8:16"])
def test_a_range_that_is_empty(value):
    with pytest.raises(RequestError, match=r"^height .*: a range is min:opt:max with 1 <= min <= opt <= max$"):
        Limits(**RANGES | {"height": value})


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("width", "500:1024:1536", 8),
        ("width", "512:1001:1536", 8),
        ("height", "512:1024:1537", 8),
        ("tokens", "75", 77),
        ("tokens", "77:77:200", 77),
    ],
)
def test_bounds_are_multiples(name, value, step):
    spelled = value if ":" in value else f"{value}:{value}:{value}"
    with pytest.raises(RequestError, match=f"^{name} {spelled}: every bound must be a multiple of {step}$"):
        Limits(**RANGES | {name: value})


def test_the_vae_must_serve_a_last_slice_of_one_image():
    with pytest.raises(RequestError, match=r"^vae_images 2:2:4: must begin at 1, for the last slice of a request$"):
        Limits(**RANGES | {"vae_images": "2:2:4"})


def test_limits_round_trip():
    limits = Limits(**RANGES)
    assert limits.model_dump() == RANGES | UNBOUND
    assert Limits.model_validate_json(limits.model_dump_json()) == limits


def test_limits_refuse_unknown_ranges():
    with pytest.raises(ValidationError, match="depth"):
        Limits(**RANGES, depth="1")


def test_replace_keeps_what_is_not_named():
    limits = Limits(**RANGES)
    changed = limits.replace(width="8:16:24", height=None, images=Dim("images", 1, 2, 3))
    assert changed.model_dump() == RANGES | UNBOUND | {"width": "8:16:24", "images": "1:2:3"}
    assert limits.replace() == limits
    with pytest.raises(RequestError, match="width 7"):
        limits.replace(width="7")


def test_replace_refuses_an_unknown_range():
    with pytest.raises(
        RequestError, match=r"^depth: no such range; the ranges are images, width, height, tokens, vae_"
    ):
        Limits(**RANGES).replace(depth="1:2:3")


@pytest.mark.parametrize(
    ("native", "pixels"), [(1024, "512:1024:1536"), (512, "256:512:768"), (128, "64:128:192"), (200, "96:200:296")]
)
def test_limits_around_a_native_size(native, pixels):
    limits = Limits.around(native)
    assert limits.model_dump() == RANGES | UNBOUND | {"width": pixels, "height": pixels}
