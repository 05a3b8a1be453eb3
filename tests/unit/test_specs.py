"""Dims, axes, ports and component specs: written and read back, and what they refuse."""

import re

import numpy as np
import pytest

from latentrt.runtime.bundle.specs import Axis, ComponentSpec, Dim, Port, port
from latentrt.runtime.errors import BundleError, RequestError

ROWS, TOKENS = Dim("rows", 1, 2, 8), Dim("tokens", 77, 77, 231)


@pytest.fixture
def spec():
    return ComponentSpec(
        "adder",
        (port("words", "float16", "rows", "tokens", 16), port("step", "int64", 1)),
        (port("sum", "float16", "rows", "2*tokens+3"),),
        {"rows": ROWS, "tokens": TOKENS, "unused": Dim("unused", 1, 1, 1)},
    )


def test_dim_knows_what_is_inside():
    assert [size in ROWS for size in (0, 1, 8, 9)] == [False, True, True, False]
    assert str(ROWS) == "1:2:8"


@pytest.mark.parametrize("bounds", [(0, 1, 2), (-1, 1, 2), (2, 1, 3), (1, 4, 3), (3, 2, 1)])
def test_dim_refuses_an_empty_range(bounds):
    text = ":".join(map(str, bounds))
    with pytest.raises(RequestError, match=f"^rows {text}: a range is min:opt:max with 1 <= min <= opt <= max$"):
        Dim("rows", *bounds)


@pytest.mark.parametrize(
    ("text", "axis", "size"),
    [
        ("rows", Axis("rows"), 5),
        ("8*rows", Axis("rows", 8), 40),
        ("rows+1", Axis("rows", 1, 1), 6),
        ("2*rows+3", Axis("rows", 2, 3), 13),
        ("77", Axis("", offset=77), 77),
        ("latent_height", Axis("latent_height"), 9),
    ],
)
def test_axis_round_trip(text, axis, size):
    assert Axis.parse(text) == axis
    assert str(axis) == text
    assert axis.size({"rows": 5, "latent_height": 9}) == size


@pytest.mark.parametrize("text", ["", "Rows", "rows*8", "rows-1", "8*", "8*77", "-1", "rows + 1", "1.5", "rows+"])
def test_axis_refuses(text):
    message = f"axis {text!r}: an axis is written like rows, 8*latent_height, steps+1 or 77"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        Axis.parse(text)


@pytest.mark.parametrize(
    "text", ["float16[rows, 4, latent_height, latent_width]", "int64[77]", "uint8[rows, 8*latent_height, 3]"]
)
def test_port_round_trip(text):
    parsed = Port.parse("sample", text)
    assert str(parsed) == text
    assert Port.parse("sample", str(parsed)) == parsed
    assert parsed.name == "sample"


def test_port_builder_equals_the_parsed_text():
    assert port("sample", "float16", "rows", 4, "8*latent_width") == Port.parse(
        "sample", "float16[rows, 4, 8*latent_width]"
    )


@pytest.mark.parametrize("text", ["float8[rows]", "[rows]", "rows", "", "Float16[rows]"])
def test_port_refuses_a_dtype(text):
    with pytest.raises(
        BundleError, match=r"^sample '.*': dtype '.*' is none of float16, float32, bfloat16, int64, uint8$"
    ):
        Port.parse("sample", text)


@pytest.mark.parametrize("text", ["float16[]", "float16[rows,,4]", "float16[rows, ?]", "float16"])
def test_port_refuses_axes(text):
    with pytest.raises(BundleError, match=r"^axis '.*': an axis is written like "):
        Port.parse("sample", text)


def test_port_shape_and_dtype():
    sample = port("sample", "float16", "rows", 4, "8*latent_height")
    assert sample.shape({"rows": 2, "latent_height": 17}) == (2, 4, 136)
    assert sample.numpy_dtype == np.float16
    assert port("x", "bfloat16", 1).numpy_dtype == np.uint16


def test_spec_keeps_the_dims_it_uses(spec):
    assert dict(spec.dims) == {"rows": ROWS, "tokens": TOKENS}
    assert [port.name for port in spec.ports] == ["words", "step", "sum"]
    assert spec.sizes("min") == {"rows": 1, "tokens": 77}
    assert spec.sizes("opt") == {"rows": 2, "tokens": 77}
    assert spec.sizes("max") == {"rows": 8, "tokens": 231}


def test_spec_cannot_be_changed(spec):
    with pytest.raises(TypeError, match="does not support item assignment"):
        spec.dims["rows"] = TOKENS


def test_spec_without_a_dim_it_uses():
    with pytest.raises(KeyError, match="rows"):
        ComponentSpec("adder", (port("words", "float16", "rows"),), (), {})


@pytest.mark.parametrize("sizes", [{"rows": 1, "tokens": 77}, {"rows": 8, "tokens": 231}, {"rows": 2, "tokens": 100}])
def test_spec_accepts_sizes_in_range(spec, sizes):
    spec.check(sizes)
    spec.check(sizes | {"another": 1000})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 0, "tokens": 77}, "adder: rows 0 is outside 1 to 8"),
        ({"rows": 9, "tokens": 77}, "adder: rows 9 is outside 1 to 8"),
        ({"rows": 1, "tokens": 232}, "adder: tokens 232 is outside 77 to 231"),
        ({"rows": 1}, "adder: no size given for tokens; its dims are rows, tokens"),
    ],
)
def test_spec_refuses_sizes(spec, sizes, message):
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        spec.check(sizes)
