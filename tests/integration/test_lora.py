"""LoRAs: every format gives the merged weights; what does not fit is refused before a weight is read."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from checkpoints import tensors, write_checkpoint, write_sdxl
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers
from loras import CONVOLUTIONS, LAYERS, LINEAR, TEXTS, Change, expected, write_lora
from safetensors.torch import load_file, save_file

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.sources.families import CONFIGS
from latentrt.export.sources.lora import LoraFile, layers
from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.lora.keys import read_key

ATTENTION_TEXTS = tuple(change for change in TEXTS if "self_attn" in change.layer)


@pytest.fixture(scope="module")
def plain(sdxl_checkpoint):
    return tensors(Checkpoint.open(sdxl_checkpoint))


def merged(folder, *loras):
    return Checkpoint.open(
        folder, loras=[LoraFile(*lora) if isinstance(lora, tuple) else LoraFile(lora) for lora in loras]
    )


def refused(folder, *loras):
    with pytest.raises(CheckpointError) as caught:
        merged(folder, *loras)
    return str(caught.value)


def assert_merged(found, plain, changes, **how):
    """These layers are changed as they should be, and nothing else is."""
    touched = {(change.folder, change.key) for change in changes}
    for number, change in enumerate(changes):
        wanted = expected(plain[change.folder], change, number, **how)
        assert (wanted - plain[change.folder][change.key]).abs().max() > 0.1
        torch.testing.assert_close(found[change.folder][change.key].double(), wanted, rtol=1e-6, atol=1e-6)
    for folder, state in plain.items():
        for name, value in state.items():
            if (folder, name) not in touched:
                assert torch.equal(found[folder][name], value), (folder, name)


# Every format


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("kohya", (*LAYERS, *CONVOLUTIONS, *TEXTS)),
        ("kohya original", (*LAYERS, *CONVOLUTIONS, *TEXTS)),
        ("peft", (*LAYERS, *CONVOLUTIONS, *TEXTS)),
        ("diffusers", (*LAYERS, *CONVOLUTIONS, *TEXTS)),
        ("processor", (*LINEAR, *ATTENTION_TEXTS)),
    ],
)
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_every_format_gives_the_merged_weights(sdxl_checkpoint, plain, tmp_path, form, changes, alpha):
    file = write_lora(tmp_path / "a.safetensors", form, changes, alpha=alpha)
    found = tensors(merged(sdxl_checkpoint, (file, 0.75)))
    assert_merged(found, plain, changes, scale=0.75 * (alpha / 3 if alpha else 1))


def test_attention_processors_without_a_prefix_are_of_the_unet(sdxl_checkpoint, plain, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "processor", LINEAR)
    save_file({key.removeprefix("unet."): value for key, value in load_file(file).items()}, file)
    assert_merged(tensors(merged(sdxl_checkpoint, file)), plain, LINEAR)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model."])
def test_paths_with_dots_under_other_prefixes(sdxl_checkpoint, plain, tmp_path, prefix):
    """In original blocks, and as PEFT saves a U-Net alone."""
    path = "input_blocks.3.1.transformer_blocks.0.attn1.to_q" if prefix == "diffusion_model." else LINEAR[0].layer
    state = load_file(write_lora(tmp_path / "a.safetensors", "peft", LINEAR[:1]))
    save_file(
        {key.replace(f"unet.{LINEAR[0].layer}", prefix + path): value for key, value in state.items()}, tmp_path / "b"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3}))
    assert_merged(tensors(merged(sdxl_checkpoint, tmp_path / "b")), plain, LINEAR[:1])


def test_half_precision_files_are_added_in_float32(sdxl_checkpoint, plain, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "kohya", LINEAR, dtype=torch.float16)
    found = tensors(merged(sdxl_checkpoint, file))
    for number, change in enumerate(LINEAR):
        wanted = expected(plain["unet"], change, number)
        torch.testing.assert_close(found["unet"][change.key].double(), wanted, rtol=0, atol=5e-3)
        assert not torch.equal(found["unet"][change.key], found["unet"][change.key].half().float())


def test_the_sum_is_rounded_once_to_the_network_s_dtype(sdxl_checkpoint, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "kohya", LINEAR)
    whole, half = (tensors(merged(sdxl_checkpoint, file), dtype)["unet"] for dtype in (torch.float32, torch.float16))
    torch.testing.assert_close(half, {name: value.half() for name, value in whole.items()}, rtol=0, atol=0)


def test_a_linear_lora_on_a_convolution_of_one_pixel(tmp_path, sdxl_checkpoint, plain):
    """As in SD 1.x, whose transformers begin with one; here the shortcut."""
    change = CONVOLUTIONS[5]
    flat = Change(change.folder, change.layer, change.shape[:2])
    file = write_lora(tmp_path / "a.safetensors", "kohya", (flat,))
    assert_merged(tensors(merged(sdxl_checkpoint, file)), plain, (change,))


def test_a_lora_for_sd_1(tmp_path):
    """One text encoder, named lora_te_; transformers that begin with a convolution of one pixel."""
    folder = write_checkpoint(tmp_path / "sd15", "sd15")
    block = "down_blocks.0.attentions.0"
    changes = (
        Change("unet", f"{block}.proj_in", (16, 16, 1, 1), "input_blocks_1_1_proj_in"),
        Change(
            "unet",
            f"{block}.transformer_blocks.0.attn2.to_k",
            (16, 32),
            "input_blocks_1_1_transformer_blocks_0_attn2_to_k",
        ),
        Change("unet", "up_blocks.1.resnets.1.conv1", (16, 32, 3, 3), "output_blocks_3_0_in_layers_2"),
        TEXTS[0],
    )
    file = write_lora(tmp_path / "a.safetensors", "kohya original", changes, alpha=2.0)
    save_file({key.replace("lora_te1_", "lora_te_"): value for key, value in load_file(file).items()}, file)
    plain, found = tensors(Checkpoint.open(folder)), tensors(merged(folder, file))
    assert_merged(found, plain, changes, scale=2 / 3)


def test_alphas_in_the_header_of_diffusers(sdxl_checkpoint, plain, tmp_path):
    header = {"unet.lora_alpha": 6, "unet.r": 3, "unet.alpha_pattern": {"attn2.to_k": 12}, "unet.use_dora": False}
    file = write_lora(
        tmp_path / "a.safetensors", "peft", LINEAR, metadata={"lora_adapter_metadata": json.dumps(header)}
    )
    found = tensors(merged(sdxl_checkpoint, file))["unet"]
    for number, change in enumerate(LINEAR):
        wanted = expected(plain["unet"], change, number, scale=4.0 if "attn2.to_k" in change.layer else 2.0)
        torch.testing.assert_close(found[change.key].double(), wanted, rtol=1e-6, atol=1e-6)


def test_original_names_at_full_size_are_those_of_diffusers():
    """Every layer of SDXL's U-Net, by kohya's name for it: this table and diffusers' two steps find the same one."""
    config = json.loads((CONFIGS / "sdxl.json").read_text(encoding="utf-8"))["unet"]
    known = layers("unet", UNet2DConditionModel, config, config)
    original = ("input_blocks", "middle_block", "output_blocks", "time_embed_", "label_emb", "out_2")
    names = [name for name in known if name.startswith(original) and not name.endswith("_to_out")]
    assert len(names) == 794
    for name in names:
        key = f"lora_unet_{name}.lora_down.weight"
        (mapped,) = _maybe_map_sgm_blocks_to_diffusers({key: None}, SimpleNamespace(**config))
        assert known[read_key(f"unet.{_convert_unet_lora_key(mapped)}").layer] == known[name]


# Several, and how strongly


def test_several_add_up_in_any_order(sdxl_checkpoint, plain, tmp_path):
    first = write_lora(tmp_path / "a.safetensors", "kohya", LINEAR, seed=1)
    second = write_lora(tmp_path / "b.safetensors", "peft", LINEAR, seed=50, rank=2)
    checkpoints = (
        merged(sdxl_checkpoint, (first, 0.7), (second, -0.3)),
        merged(sdxl_checkpoint, (second, -0.3), (first, 0.7)),
    )
    one, other = map(tensors, checkpoints)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert checkpoints[0].weights_sha256() == checkpoints[1].weights_sha256()
    for number, change in enumerate(LINEAR):
        wanted = expected(plain["unet"], change, number, scale=0.7, seed=1)
        wanted += expected(plain["unet"], change, number, scale=-0.3, seed=50, rank=2) - plain["unet"][change.key]
        torch.testing.assert_close(one["unet"][change.key].double(), wanted, rtol=1e-6, atol=1e-6)


def test_weight_0_is_none_to_the_bit(sdxl_checkpoint, plain, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "kohya", (*LINEAR, *TEXTS))
    torch.testing.assert_close(tensors(merged(sdxl_checkpoint, (file, 0.0))), plain, rtol=0, atol=0)


def test_the_hash_and_the_provenance_tell_the_loras(sdxl_checkpoint, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "kohya", LINEAR)
    other = write_lora(tmp_path / "b.safetensors", "kohya", LINEAR, seed=9)
    checkpoints = [merged(sdxl_checkpoint), *(merged(sdxl_checkpoint, lora) for lora in (file, (file, 0.5), other))]
    assert len({checkpoint.weights_sha256() for checkpoint in checkpoints}) == 4
    (record,) = checkpoints[2].provenance()["loras"]
    assert (record["file"], record["weight"]) == ("a.safetensors", 0.5)
    assert re.fullmatch("[0-9a-f]{64}", record["sha256"])
    assert "loras" not in checkpoints[0].provenance()


def test_on_random_weights(tmp_path):
    configs = write_sdxl(tmp_path / "sdxl", weights=False)
    file = write_lora(tmp_path / "a.safetensors", "kohya", LINEAR)
    plain = tensors(Checkpoint.open(configs, 7))
    assert_merged(tensors(Checkpoint.open(configs, 7, loras=[LoraFile(file)])), plain, LINEAR)


# FILE:WEIGHT


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("folder/a:b.safetensors:1e-1", "folder/a:b.safetensors", 0.1),
    ],
)
def test_file_and_weight(text, path, weight):
    assert LoraFile.parse(text) == LoraFile(type(LoraFile.parse(text).path)(path), weight)


def test_a_file_whose_name_ends_like_a_weight(tmp_path):
    (tmp_path / "a:0.5").write_text("")
    assert LoraFile.parse(f"{tmp_path}/a:0.5") == LoraFile(tmp_path / "a:0.5")
    assert LoraFile.parse(f"{tmp_path}/a:0.5:2") == LoraFile(tmp_path / "a:0.5", 2.0)


@pytest.mark.parametrize("weight", ["strong", "", "nan", "inf", "0,5"])
def test_a_weight_that_is_not_a_number(weight):
    message = (
        rf"^--lora a.safetensors:{weight}: weight '{weight}' is not a number. Write .*, such as a.safetensors:0.8$"
    )
    with pytest.raises(RequestError, match=message):
        LoraFile.parse(f"a.safetensors:{weight}")


# What is refused


def test_layers_that_the_checkpoint_lacks(sdxl_checkpoint, tmp_path):
    missing = tuple(Change("unet", f"down_blocks.9.resnets.{number}.conv1", (8, 8)) for number in range(14))
    file = write_lora(tmp_path / "a.safetensors", "kohya", (*LINEAR, *missing))
    message = refused(sdxl_checkpoint, file)
    assert message.startswith(
        f"{file}: 14 of its 18 layers are not in this checkpoint: unet.down_blocks_9_resnets_0_conv1, "
    )
    assert message.endswith("and 2 more. The LoRA was made for another family of models")


def test_no_key_is_dropped_where_both_block_names_are_mixed(sdxl_checkpoint, tmp_path):
    """diffusers' converter removes the original names without a word if it finds its own as well."""
    ours = load_file(write_lora(tmp_path / "a.safetensors", "kohya", LINEAR[:2]))
    wrong = Change("unet", "nothing", (32, 32), "input_blocks_77_1_proj_in")
    theirs = load_file(write_lora(tmp_path / "b.safetensors", "kohya original", (wrong,)))
    save_file(ours | theirs, tmp_path / "c.safetensors")
    assert "1 of its 3 layers are not in this checkpoint: unet.input_blocks_77_1_proj_in" in refused(
        sdxl_checkpoint, tmp_path / "c.safetensors"
    )


@pytest.mark.parametrize(
    ("width", "made_for"),
    [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL"), (1280, "the SDXL refiner"), (99, "a model")],
)
def test_another_family(sdxl_checkpoint, tmp_path, width, made_for):
    change = Change("unet", LINEAR[1].layer, (320, width))
    file = write_lora(tmp_path / "a.safetensors", "kohya", (change,))
    assert refused(sdxl_checkpoint, file) == (
        f"{file}: made for {made_for} (text {width} wide), this checkpoint is a model (text 80 wide). "
        "Take a LoRA made for this family"
    )


def test_another_size(sdxl_checkpoint, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "peft", (Change("unet", LINEAR[0].layer, (32, 64)),))
    assert refused(sdxl_checkpoint, file) == (
        f"{file}: unet.{LINEAR[0].layer.replace('.', '_')}: up (32, 3) times down (3, 64) does not give the layer's "
        "(32, 32). The LoRA was made for another model"
    )


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_conv_in.hada_w1_a", "LoHa"),
        ("lora_unet_conv_in.lokr_w1", "LoKr"),
        ("lora_unet_conv_in.dora_scale", "DoRA"),
        ("unet.conv_in.lora_magnitude_vector", "DoRA"),
        ("lora_unet_conv_in.lora_mid.weight", "a Tucker-decomposed LoRA"),
        ("lora_unet_conv_in.diff", "a full difference of weights"),
        ("lora_unet_conv_in.oft_blocks", "OFT"),
        ("lora_unet_conv_in.on_input", "(IA)³"),
        ("unet.conv_in.lora_B.bias", "a LoRA with biases"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_name(sdxl_checkpoint, tmp_path, key, kind):
    file = write_lora(tmp_path / "a.safetensors", "kohya", LINEAR, **{key: torch.ones(1)})
    message = f"{file}: {kind}; latentrt adds plain LoRAs. Merge it into the checkpoint first"
    assert refused(sdxl_checkpoint, file) == message


@pytest.mark.parametrize("option", ["unet.use_dora", "text_encoder.lora_bias"])
def test_options_in_the_header_that_are_not_plain(sdxl_checkpoint, tmp_path, option):
    header = {"lora_adapter_metadata": json.dumps({option: True})}
    file = write_lora(tmp_path / "a.safetensors", "peft", LINEAR, metadata=header)
    named = option.partition(".")[2]
    assert refused(sdxl_checkpoint, file) == (
        f"{file}: {named}; latentrt adds plain LoRAs. Merge it into the checkpoint with PEFT first"
    )


def test_a_header_that_cannot_be_read(sdxl_checkpoint, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "peft", LINEAR, metadata={"lora_adapter_metadata": "{"})
    assert refused(sdxl_checkpoint, file).startswith(f"{file}: lora_adapter_metadata is not JSON (")


def test_files_without_a_lora(sdxl_checkpoint, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, file)
    assert refused(sdxl_checkpoint, file).startswith(
        f"{file}: holds no LoRA, its first key is decoder.conv_in.weight. "
    )
    save_file({}, file)
    assert refused(sdxl_checkpoint, file).startswith(f"{file}: holds no LoRA, its first key is none. ")


def test_keys_that_are_no_lora_s(sdxl_checkpoint, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "kohya", LINEAR, emb_params=torch.zeros(2, 80))
    assert refused(sdxl_checkpoint, file) == f"{file}: 1 keys are no LoRA's: emb_params"


def test_half_a_lora(sdxl_checkpoint, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"lora_unet_conv_in.lora_down.weight": torch.zeros(2, 4, 3, 3)}, file)
    assert refused(sdxl_checkpoint, file) == f"{file}: unet, conv_in: holds down only. Download it again"


def test_matrices_that_are_none(sdxl_checkpoint, tmp_path):
    keys = {"lora_unet_conv_in.lora_down.weight": torch.zeros(2), "lora_unet_conv_in.lora_up.weight": torch.zeros(2, 2)}
    save_file(keys, tmp_path / "a.safetensors")
    assert refused(sdxl_checkpoint, tmp_path / "a.safetensors").startswith(
        f"{tmp_path / 'a.safetensors'}: unet, conv_in: its matrices have the shapes (2,) and (2, 2)"
    )


@pytest.mark.parametrize("name", ["missing.safetensors", "a.bin", "a.pt", "cut.safetensors"])
def test_files_that_cannot_be_read(sdxl_checkpoint, tmp_path, name):
    if name != "missing.safetensors":
        (tmp_path / name).write_bytes(b"\x80\x04")
    said = {"missing.safetensors": "no such file", "cut.safetensors": "not a readable safetensors file"}.get(
        name, "a pickle"
    )
    assert refused(sdxl_checkpoint, tmp_path / name).startswith(f"{tmp_path / name}: {said}")


def test_a_lora_that_trained_an_encoder_which_is_not_there(sdxl_checkpoint, tmp_path):
    file = write_lora(
        tmp_path / "a.safetensors", "kohya", (Change("text_encoder", "encoder.layers.7.mlp.fc1", (64, 32)),)
    )
    assert "1 of its 1 layers are not in this checkpoint: text_encoder.encoder_layers_7_mlp_fc1" in refused(
        sdxl_checkpoint, file
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["lora_up", "lora_down", "alpha"])
def test_a_diverged_lora_is_found_before_anything_is_loaded(sdxl_checkpoint, tmp_path, part, value):
    file = write_lora(tmp_path / "nan.safetensors", "kohya", LINEAR[:2], alpha=3.0)
    state = load_file(file)
    key = next(key for key in state if part in key)
    state[key] = torch.full_like(state[key], value)
    save_file(state, file)
    with pytest.raises(CheckpointError, match=rf"^{file}: {re.escape(key)}: NaN or infinity"):
        Checkpoint.open(sdxl_checkpoint, loras=[LoraFile(file)])
