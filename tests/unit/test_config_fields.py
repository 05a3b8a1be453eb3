"""Configs: every form that diffusers' signatures allow is read, every other is refused with the file and the field."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from families import family_configs
from json_files import edit_json

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.sources.config_fields import CONFIG_CLASSES, _signature, checked_config
from latentrt.export.sources.source import Config
from latentrt.runtime.errors import CheckpointError, LatentRTError

JSON_VALUES = (None, True, 0, -1, 3, 2.5, float("nan"), "text", "", [], [2], [1, 2], [[1], 2], ["a"], {}, {"a": 1})
"""A value of every kind that JSON has."""


@pytest.fixture
def sd15(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sd15", "sd15", weights=False)


def set_field(folder: Path, component: str, name: str, value: Any) -> Path:
    file = folder / component / "config.json"
    edit_json(file, lambda config: config.update({name: value}))
    return file


ALLOWED: tuple[tuple[str, str, Any], ...] = (
    ("unet", "layers_per_block", [1, 2]),
    ("unet", "transformer_layers_per_block", [1, 1]),
    ("unet", "num_attention_heads", None),
    ("unet", "attention_head_dim", [2, 4]),
    ("unet", "only_cross_attention", [False, False]),
    ("unet", "cross_attention_dim", [32, 32]),
    ("unet", "sample_size", None),
    ("unet", "upcast_attention", None),
    ("unet", "in_channels", None),
    ("unet", "norm_eps", None),
    ("vae", "scaling_factor", None),
    ("vae", "scaling_factor", 1),
    ("vae", "latent_channels", None),
    ("vae", "latents_mean", None),
    ("text_encoder", "projection_dim", None),
    ("text_encoder", "hidden_act", None),
)


@pytest.mark.parametrize(("component", "name", "value"), ALLOWED, ids=str)
def test_what_signatures_allow(sd15: Path, component: str, name: str, value: Any) -> None:
    set_field(sd15, component, name, value)
    checkpoint = Checkpoint.open(sd15, 0)
    assert checkpoint.model.latent_channels == 4
    assert checkpoint.network(component, torch.float32) is not None


@pytest.mark.parametrize("name", ["sample_size", "in_channels", "out_channels", "norm_eps"])
def test_missing_fields_have_the_defaults_of_their_class(sd15: Path, name: str) -> None:
    """A U-Net that does not say its size was trained at the family's."""
    edit_json(sd15 / "unet" / "config.json", lambda config: config.pop(name))
    model = Checkpoint.open(sd15, 0).model
    assert (model.unet_channels, model.native_size) == (4, 256 if name == "sample_size" else 64)


def test_a_null_reaches_the_loaded_network_as_its_default(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "sd15", "sd15")
    wanted = Checkpoint.open(folder).network("unet", torch.float32).config["norm_eps"]
    for name in ("norm_eps", "upcast_attention", "act_fn"):
        set_field(folder, "unet", name, None)
    set_field(folder, "text_encoder", "hidden_act", None)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.network("unet", torch.float32).config["norm_eps"] == wanted == 1e-5
    assert checkpoint.network("text_encoder", torch.float32).config.hidden_act == "quick_gelu"


REFUSED: tuple[tuple[str, str, Any, str], ...] = (
    ("unet", "layers_per_block", "two", "layers_per_block is 'two'; it must be a whole number or a list of whole"),
    ("unet", "attention_head_dim", [8, "a"], "attention_head_dim is .*; it must be a whole number or a list of"),
    ("unet", "cross_attention_dim", [32, 40], r"cross_attention_dim is \[32, 40\]; latentrt serves one value for all"),
    ("unet", "sample_size", [16, 24], r"sample_size is \[16, 24\]; latentrt serves one value for all"),
    ("unet", "sample_size", 0, "sample_size is 0; it must be a whole number above 0"),
    ("unet", "block_out_channels", None, "UNet2DConditionModel cannot be made from it: "),
    ("unet", "down_block_types", ["CrossAttnDownBlock2D"], "UNet2DConditionModel cannot be made from it: "),
    ("unet", "num_attention_heads", 2, "UNet2DConditionModel cannot be made from it: At the moment it is not possible"),
    ("unet", "only_cross_attention", "no", "only_cross_attention is 'no'; it must be true or false or a list of true"),
    ("vae", "scaling_factor", "large", "scaling_factor is 'large'; it must be a number"),
    ("vae", "scaling_factor", float("nan"), "scaling_factor is nan; it must be a number"),
    ("vae", "scaling_factor", 0, "scaling_factor is 0; latents are divided by it, so it must be above 0"),
    ("vae", "latents_std", [1.0, 0.0, 1.0, 1.0], "latents_std is .*; latents are divided by it"),
    ("text_encoder", "max_position_embeddings", 64, "max_position_embeddings is 64; prompts are read in chunks of 77"),
    ("text_encoder", "num_hidden_layers", 0, "num_hidden_layers is 0; it must be a whole number above 0"),
    ("vae", "block_out_channels", 16, "block_out_channels is 16; it must be a list of whole numbers"),
    ("vae", "latents_mean", 0.5, "latents_mean is 0.5; it must be a list of numbers or null"),
    ("text_encoder", "hidden_size", "wide", "hidden_size is 'wide'; it must be a whole number"),
    ("text_encoder", "num_attention_heads", 5, "CLIPTextModel cannot be made from it: "),
    ("text_encoder", "hidden_act", "nonsense", "CLIPTextModel cannot be made from it: "),
)


@pytest.mark.parametrize(("component", "name", "value", "message"), REFUSED, ids=str)
def test_what_is_refused_names_file_and_field(sd15: Path, component: str, name: str, value: Any, message: str) -> None:
    file = set_field(sd15, component, name, value)
    with pytest.raises(CheckpointError, match=f"^{file}: {message}"):
        Checkpoint.open(sd15, 0)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_no_value_of_any_field_is_a_traceback(component: str) -> None:
    """Each kind of JSON in each field of a signature: the reader checks it, or one of our errors names it."""
    values = family_configs("sd15")[component]
    for name, (_, _) in _signature(*CONFIG_CLASSES[component]).items():
        for value in JSON_VALUES:
            config = Config(Path("config.json"), values | {name: value})
            try:
                said = "" if name in checked_config(config, component) else "nothing"
            except CheckpointError as error:
                said = str(error)
            assert not said or said.startswith(f"config.json: {name} is "), (name, value)


READ = {
    "unet": (
        "sample_size",
        "in_channels",
        "out_channels",
        "cross_attention_dim",
        "layers_per_block",
        "time_cond_proj_dim",
    ),
    "vae": ("latent_channels", "block_out_channels", "scaling_factor", "latents_mean", "shift_factor"),
    "text_encoder": ("hidden_size", "num_hidden_layers", "vocab_size", "projection_dim"),
    "scheduler": ("_class_name", "beta_start", "beta_schedule", "num_train_timesteps", "trained_betas", "steps_offset"),
    "": ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "_class_name", "force_zeros_for_empty_prompt"),
}
"""Fields that latentrt reads itself."""


@pytest.mark.parametrize("component", READ)
def test_no_value_of_a_field_that_is_read_is_a_traceback(sd15: Path, component: str) -> None:
    file = (
        sd15
        / component
        / ({"": "model_index.json", "scheduler": "scheduler_config.json"}.get(component) or "config.json")
    )
    text = file.read_text()
    for name in READ[component]:
        for value in JSON_VALUES:
            file.write_text(json.dumps(json.loads(text) | {name: value}))
            with suppress(LatentRTError):
                Checkpoint.open(sd15, 0)


def test_lists_of_layers_have_places_and_loras(tmp_path: Path) -> None:
    from loras import Change, write_lora
    from originals import write_single_file

    from latentrt.export.sources.lora import LoraFile

    folder = write_checkpoint(tmp_path / "list", "sd15", unet={"layers_per_block": [1, 2]})
    change = Change("unet", "up_blocks.0.resnets.2.conv1", (32, 48, 3, 3), "output_blocks_2_0_in_layers_2")
    lora = write_lora(tmp_path / "l.safetensors", "kohya original", (change,), alpha=1.0)
    Checkpoint.open(folder, loras=[LoraFile(lora)])
    file = write_single_file(folder, tmp_path / "m.safetensors")
    found = Checkpoint.open(file, config=folder)
    assert found.network("unet", torch.float32) is not None
