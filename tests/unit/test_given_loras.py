"""`--lora`: names, strengths, and what a repeated picture says of them."""

import pytest
from loras import LINEAR, write_lora

from latentrt.cli.loras import GivenLoras
from latentrt.runtime.errors import RequestError


def test_a_strength_that_is_not_given_is_the_pictures(tmp_path):
    style, face = (write_lora(tmp_path / f"{name}.safetensors", "peft", LINEAR) for name in ("style", "face"))
    loras = GivenLoras.parse([str(style), f"{face}:0.25"])
    assert loras.setting(None) == {"style": 1.0, "face": 0.25}
    assert loras.setting({"style": 0.8, "face": 0.5}) == {"style": 0.8, "face": 0.25}
    assert loras.setting({"style": {"unet": 0.5}, "other": 1.0}) == {"style": {"unet": 0.5}, "face": 0.25}
    assert GivenLoras.parse([]).setting({"style": 0.8}) == {"style": 0.8}
    assert GivenLoras.parse([]).setting(None) is None


def test_names_are_told_apart(tmp_path):
    file = write_lora(tmp_path / "style.safetensors", "peft", LINEAR)
    with pytest.raises(RequestError, match=r"style.safetensors have one name, by which LoRAs are told apart"):
        GivenLoras.parse([str(file), f"{file}:0.5"])
    with pytest.raises(RequestError, match="weight 'abc' is not a number"):
        GivenLoras.parse([f"{tmp_path}/none.safetensors:abc"])
