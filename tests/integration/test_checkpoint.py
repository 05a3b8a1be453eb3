"""Checkpoints: what is refused before anything is loaded, what loads equally, what random weights promise."""

import os
import re
import shutil

import pytest
import torch
from checkpoints import write_sdxl
from json_files import edit_json
from safetensors.torch import load_file, save_file

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.family import CLASSES, TIME_IDS
from latentrt.export.pipelines import PIPELINES
from latentrt.runtime.errors import CheckpointError

FOLDERS = ("text_encoder", "text_encoder_2", "unet", "vae")
STEMS = {folder: "diffusion_pytorch_model" if folder in ("unet", "vae") else "model" for folder in FOLDERS}


@pytest.fixture
def folder(sdxl_checkpoint, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(sdxl_checkpoint, tmp_path / "sdxl")


@pytest.fixture(scope="module")
def original(sdxl_checkpoint):
    return tensors(Checkpoint.open(sdxl_checkpoint))


def tensors(checkpoint, dtype=torch.float32):
    """Every tensor of the four networks by `folder.name`."""
    networks = {folder: checkpoint.network(folder, dtype) for folder in FOLDERS}
    return {f"{folder}.{name}": value for folder in FOLDERS for name, value in networks[folder].state_dict().items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def weights(folder, name):
    return folder / name / f"{STEMS[name]}.safetensors"


def refused(folder, **options):
    """The message with which a folder is refused."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder, **options)
    return str(caught.value)


def edit_weights(file, change):
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


# What is read from the configs


def test_facts_come_from_the_configs(folder):
    edit_json(folder / "vae" / "config.json", lambda config: config.update(scaling_factor=0.25))
    edit_json(folder / "model_index.json", lambda index: index.update(force_zeros_for_empty_prompt=False))
    model = Checkpoint.open(str(folder)).model
    assert (model.family, model.native_size, model.latent_scale, model.time_ids) == ("sdxl", 128, 8, TIME_IDS[6])
    assert (model.context_width, model.pooled_width) == (80, 40)
    assert (model.scaling_factor, model.zero_negative) == (0.25, False)
    assert model.scheduler["_class_name"] == "EulerDiscreteScheduler"


@pytest.mark.parametrize("kind", ["empty folder", "file", "nothing", "bundle"])
def test_not_a_checkpoint(tmp_path, kind):
    path = tmp_path / "thing"
    if kind == "file":
        path.write_bytes(b"weights")
    elif kind != "nothing":
        path.mkdir()
    if kind == "bundle":
        (path / "manifest.json").write_text("{}")
    said = {"file": "not a readable safetensors file", "nothing": "no such file or folder"}
    assert refused(path).startswith(f"{path}: {said.get(kind, 'not a checkpoint, it has no ')}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StableDiffusionControlNetPipeline", ", which has a ControlNet beside the U-Net"),
        ("StableDiffusionXLControlNetInpaintPipeline", ", which has a ControlNet beside the U-Net"),
        ("StableDiffusionXLAdapterPipeline", ", which has an adapter beside the U-Net"),
        ("StableDiffusionGLIGENPipeline", ", which has boxes with labels as conditions"),
        ("StableDiffusionUpscalePipeline", ", which has a small image and its noise level as conditions"),
        ("StableDiffusionInstructPix2PixPipeline", ", which has a U-Net of 8 channels that takes an image"),
        ("StableDiffusionDepth2ImgPipeline", ", which has a U-Net of 5 channels that takes a depth map"),
        ("StableDiffusion3Pipeline", ", which has a transformer in place of the U-Net"),
        ("PixArtAlphaPipeline", ", which has a transformer in place of the U-Net"),
        ("FluxPipeline", ", which has a transformer in place of the U-Net"),
        ("MarigoldDepthPipeline", ""),
    ],
)
def test_a_pipeline_of_another_class(folder, name, reason):
    edit_json(folder / "model_index.json", lambda index: index.update(_class_name=name))
    served = ", ".join(PIPELINES)
    assert refused(folder) == f"{folder}: a {name}{reason}. latentrt serves checkpoints of {served}"


def test_an_index_without_a_class(folder):
    edit_json(folder / "model_index.json", lambda index: index.pop("_class_name"))
    assert refused(folder) == f"{folder}: its model_index.json names no pipeline class. Download the checkpoint again"


@pytest.mark.parametrize(
    ("component", "entry", "found"),
    [
        ("unet", ["diffusers", "UNet2DModel"], "UNet2DModel of diffusers"),
        ("unet", ["somewhere", "UNet2DConditionModel"], "UNet2DConditionModel of somewhere"),
        ("unet", None, "nothing of nothing"),
        ("vae", ["diffusers", "AsymmetricAutoencoderKL"], "AsymmetricAutoencoderKL of diffusers"),
        ("text_encoder", ["transformers", "T5EncoderModel"], "T5EncoderModel of transformers"),
    ],
)
def test_a_component_of_another_class(folder, component, entry, found):
    edit_json(folder / "model_index.json", lambda index: index.update({component: entry}))
    served = "AutoencoderKL and AutoencoderTiny" if component == "vae" else CLASSES[component][1]
    assert refused(folder) == f"{folder}: {component} is {found}; latentrt serves {served}"


def test_a_component_that_the_index_lacks(folder):
    edit_json(folder / "model_index.json", lambda index: index.pop("vae"))
    assert refused(folder) == f"{folder}: vae is nothing of nothing; latentrt serves AutoencoderKL and AutoencoderTiny"


def test_no_text_encoder_at_all(folder):
    nothing = {"text_encoder": [None, None], "text_encoder_2": None}
    edit_json(folder / "model_index.json", lambda index: index.update(nothing))
    assert refused(folder) == f"{folder}: text_encoder is None of None; latentrt serves CLIPTextModel"


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ("text_encoder", "the U-Net's cross_attention_dim is 80; this checkpoint's text encoders and VAE need 48"),
        ("text_encoder_2", "the U-Net takes pooled text, but there is no text_encoder_2 to give it"),
    ],
)
def test_a_text_encoder_too_few(folder, component, message):
    edit_json(folder / "model_index.json", lambda index: index.update({component: [None, None]}))
    assert refused(folder) == f"{folder}: {message}"


@pytest.mark.parametrize(
    ("component", "option", "value", "meaning"),
    [
        ("unet", "class_embed_type", "timestep", "class embeddings"),
        ("unet", "num_class_embeds", 1000, "class embeddings"),
        ("unet", "encoder_hid_dim", 64, "projected text embeddings"),
        ("unet", "encoder_hid_dim_type", "ip_image_proj", "projected text or image embeddings, as IP-Adapters do"),
        ("vae", "shift_factor", 0.1, "shifted latents"),
        ("text_encoder_2", "use_attention_mask", True, "masked padding"),
    ],
)
def test_options_that_are_not_served(folder, component, option, value, meaning):
    edit_json(folder / component / "config.json", lambda config: config.update({option: value}))
    assert refused(folder) == f"{folder}: {component} uses {option} ({meaning}), which latentrt does not serve"
    edit_json(folder / component / "config.json", lambda config: config.update({option: None}))
    Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("option", "value", "served"),
    [
        ("addition_embed_type", None, "text_time"),
        ("addition_embed_type", "image", "text_time"),
        ("attention_type", "gated", "default"),
    ],
)
def test_another_kind_of_condition(folder, option, value, served):
    edit_json(folder / "unet" / "config.json", lambda config: config.update({option: value}))
    assert refused(folder) == f"{folder}: the U-Net's {option} is {value}; latentrt serves {served} in this pipeline"


@pytest.mark.parametrize(
    ("component", "change", "message"),
    [
        ("unet", {"cross_attention_dim": 96}, "cross_attention_dim is 96; $ need 80"),
        ("text_encoder", {"hidden_size": 40}, "cross_attention_dim is 80; $ need 88"),
        ("unet", {"in_channels": 8}, "in_channels is 8; $ need 4 or, for inpainting, 9"),
        ("unet", {"out_channels": 8}, "out_channels is 8; $ need 4"),
        ("unet", {"projection_class_embeddings_input_dim": 72}, "number of time ids is 4; latentrt serves 6 and 5"),
        ("unet", {"projection_class_embeddings_input_dim": 90}, "number of time ids is 6; latentrt serves 6 and 5"),
        ("vae", {"latent_channels": 16}, "in_channels is 4; $ need 16 or, for inpainting, 33"),
    ],
)
def test_widths_that_do_not_fit(folder, component, change, message):
    edit_json(folder / component / "config.json", lambda config: config.update(change))
    wanted = message.replace("$", "this checkpoint's text encoders and VAE")
    assert refused(folder) == f"{folder}: the U-Net's {wanted}"


@pytest.mark.parametrize(
    ("moments", "name", "count"),
    [
        ({"latents_mean": [0.0] * 4}, "latents_mean", 4),
        ({"latents_std": [1.0] * 4}, "latents_mean", 0),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 3}, "latents_std", 3),
    ],
)
def test_moments_that_do_not_fit(folder, moments, name, count):
    edit_json(folder / "vae" / "config.json", lambda config: config.update(moments))
    needed = "latents_mean and latents_std must both have 4"
    assert refused(folder) == f"{folder}: the VAE's {name} has {count} numbers; {needed}"


@pytest.mark.parametrize("name", [*(f"{folder}/config.json" for folder in FOLDERS), "scheduler/scheduler_config.json"])
def test_a_config_that_is_missing_or_broken(folder, name):
    file = folder / name
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    assert refused(folder).startswith(f"{file}: not valid JSON (")
    assert refused(folder).endswith("). Download the checkpoint again")
    for other in ('"text"', "[]", "null"):
        file.write_text(other)
        assert refused(folder).startswith(f"{file}: must hold a JSON object, not ")
    file.unlink()
    assert refused(folder) == f"{file}: missing. The checkpoint is incomplete; download it again"


def test_a_broken_index(folder):
    (folder / "model_index.json").write_text("{")
    assert refused(folder).startswith(f"{folder / 'model_index.json'}: not valid JSON (")


@pytest.mark.parametrize(
    ("tokenizer", "gone"), [("tokenizer", ["vocab.json"]), ("tokenizer_2", ["merges.txt"]), ("tokenizer", None)]
)
def test_a_tokenizer_that_is_missing(folder, tokenizer, gone):
    if gone is None:
        shutil.rmtree(folder / tokenizer)
    for name in gone or ():
        (folder / tokenizer / name).unlink()
    assert refused(folder) == f"{folder / tokenizer}: needs tokenizer.json, or vocab.json and merges.txt"


# Weight files


@pytest.mark.parametrize("name", FOLDERS)
def test_a_weight_file_that_is_missing(folder, name):
    weights(folder, name).unlink()
    wanted = f"{STEMS[name]}.safetensors or {STEMS[name]}.fp16.safetensors"
    assert refused(folder) == f"{folder / name}: {wanted} is missing. Download the checkpoint again"


def test_a_variant_that_is_missing(folder):
    message = f"{folder}: no network has weights of the variant fp16. Leave out --variant"
    assert refused(folder, variant="fp16") == message


@pytest.mark.parametrize("pickle", ["diffusion_pytorch_model.bin", "unet.ckpt", "model.pt", "model.PTH"])
def test_pickles_are_refused(folder, pickle):
    weights(folder, "unet").rename(folder / "unet" / pickle)
    message = refused(folder)
    assert message.startswith(f"{folder / 'unet'}: only {pickle}, a pickle, which can run any code when read.")
    assert message.endswith("(diffusion_pytorch_model.safetensors or diffusion_pytorch_model.fp16.safetensors)")


def test_a_pickle_beside_the_weights_is_not_read(folder, original):
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not read")
    checkpoint = Checkpoint.open(folder)
    assert [file.name for file in checkpoint.source.weight_files("unet")] == ["diffusion_pytorch_model.safetensors"]
    assert_equal(tensors(checkpoint), original)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return write_sdxl(tmp_path_factory.mktemp("sharded") / "sdxl", max_shard_size="400KB")


def test_sharded_weights_load_equally(sharded, original):
    checkpoint = Checkpoint.open(sharded)
    assert len(checkpoint.source.weight_files("unet")) > 2
    assert_equal(tensors(checkpoint), original)


def test_a_shard_that_is_missing(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "sdxl")
    shard = Checkpoint.open(folder).source.weight_files("unet")[1]
    shard.unlink()
    index = "diffusion_pytorch_model.safetensors.index.json"
    assert refused(folder) == f"{shard}: missing, but {index} names it. Download it again"


def test_a_shard_index_that_is_broken(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "sdxl")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    edit_json(index, lambda content: content.pop("weight_map"))
    assert refused(folder) == f"{index}: has no field weight_map. Download the checkpoint again"
    index.write_text("{")
    assert refused(folder).startswith(f"{index}: not valid JSON (")


@pytest.mark.parametrize("shards", [None, "400KB"])
@pytest.mark.parametrize("named", [None, "fp16"])
def test_variant_weights_load_equally(tmp_path, original, shards, named):
    options = {"max_shard_size": shards} if shards else {}
    folder = write_sdxl(tmp_path / "sdxl", variant="fp16", **options)
    checkpoint = Checkpoint.open(folder, variant=named)
    assert all(".fp16" in file.name for name in FOLDERS for file in checkpoint.source.weight_files(name))
    assert_equal(tensors(checkpoint), original)


def test_the_plain_weights_win_where_no_variant_is_named(folder, original):
    for name in FOLDERS:
        file = weights(folder, name)
        changed = {key: value + 1 for key, value in load_file(file).items()}
        save_file(changed, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    assert_equal(tensors(Checkpoint.open(folder)), original)
    other = tensors(Checkpoint.open(folder, variant="fp16"))
    assert_equal(other, {name: value + 1 for name, value in original.items()})


def test_weights_in_another_dtype(folder, original):
    half = tensors(Checkpoint.open(folder), torch.float16)
    assert_equal(half, {name: value.half() if value.is_floating_point() else value for name, value in original.items()})


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "not a readable safetensors file ("),
        (b"\x80\x04 a pickle in disguise", "not a readable safetensors file ("),
        (b"", "empty, 0 bytes. Download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
            "a pointer of Git LFS, not the weights",
        ),
    ],
    ids=["truncated", "no safetensors", "empty", "git-lfs"],
)
def test_weights_that_cannot_be_read(folder, name, damage, message):
    """Found in the headers of all networks, before anything is loaded."""
    file = weights(folder, name)
    if damage is None:
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.write_bytes(damage)
    assert refused(folder).startswith(f"{file}: {message}")


def test_a_tokenizer_with_ids_beyond_its_encoder_s(folder):
    vocabulary = folder / "tokenizer" / "vocab.json"
    edit_json(vocabulary, lambda words: words.update({"beyond</w>": len(words)}))
    edit_json(folder / "tokenizer" / "tokenizer_config.json", lambda config: config.pop("added_tokens_decoder", None))
    assert refused(folder).startswith(f"{folder}: tokenizer gives 'beyond</w>' the id ")
    assert refused(folder, random_seed=0).endswith("tokens. Take both from one checkpoint")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([], "must map keys to files"),
        ({"a": 1}, "must map keys to files"),
        ({}, "must name files of its folder, not []"),
        ({"a": "../other.safetensors"}, "must name files of its folder"),
    ],
)
def test_an_index_that_maps_nowhere(sharded, tmp_path, places, message):
    folder = shutil.copytree(sharded, tmp_path / "sharded")
    index = next((folder / "unet").glob("*.index.json"))
    edit_json(index, lambda values: values.update(weight_map=places))
    assert refused(folder).startswith(f"{index}: weight_map {message}")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("text_encoder", "final_layer_norm.weight"),
        ("text_encoder_2", "text_projection.weight"),
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_out.bias"),
    ],
)
@pytest.mark.parametrize("kind", ["missing", "unexpected", "mismatched"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # the libraries' own words about the keys
def test_weights_of_another_network(folder, name, key, kind):
    file = weights(folder, name)
    key = next(found for found in load_file(file) if found.endswith(key))

    def change(state):
        if kind == "missing":
            del state[key]
        elif kind == "unexpected":
            state["another.weight"] = torch.zeros(3)
        else:
            state[key] = torch.zeros(3, *state[key].shape)

    edit_weights(file, change)
    named = "another.weight" if kind == "unexpected" else key.removeprefix("text_model.")
    counted = rf"1 {kind} keys in the weights, first \S*{re.escape(named)}.*\. The weights belong to another config"
    with pytest.raises(CheckpointError, match=f"^{folder / name}: {counted}$"):
        Checkpoint.open(folder).network(name, torch.float32)


# Random weights


@pytest.fixture(scope="module")
def seeded(sdxl_configs):
    return tensors(Checkpoint.open(sdxl_configs, 7))


def test_configs_alone_need_a_seed(sdxl_configs):
    assert "model.safetensors or model.fp16.safetensors is missing" in refused(sdxl_configs)


def test_same_seed_same_weights(sdxl_configs, seeded):
    assert_equal(tensors(Checkpoint.open(sdxl_configs, 7)), seeded)


def test_weights_in_the_folder_do_not_matter(sdxl_checkpoint, seeded):
    assert_equal(tensors(Checkpoint.open(sdxl_checkpoint, 7)), seeded)


def test_same_seed_same_weights_in_half_precision(sdxl_configs, seeded):
    half = tensors(Checkpoint.open(sdxl_configs, 7), torch.float16)
    assert {value.dtype for value in half.values() if value.is_floating_point()} == {torch.float16}
    assert_equal(half, {name: value.half() if value.is_floating_point() else value for name, value in seeded.items()})


def test_another_seed_other_weights(sdxl_configs, seeded):
    other = tensors(Checkpoint.open(sdxl_configs, 8))
    assert other.keys() == seeded.keys()
    same = [name for name, value in seeded.items() if torch.equal(value, other[name])]
    assert not [name for name in same if not name.endswith("position_ids")]


def test_random_weights_are_of_usable_size(seeded):
    for name, value in seeded.items():
        assert value.isfinite().all(), name
        if value.ndim > 1 and value.numel() > 500 and "embedding" not in name:
            spread = value.std() * value[0].numel() ** 0.5
            assert 0.8 < spread < 1.2, name


# The hash that a bundle remembers


def test_hash_of_weights(folder, sdxl_checkpoint):
    first = Checkpoint.open(folder).weights_sha256()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert Checkpoint.open(sdxl_checkpoint).weights_sha256() == first
    edit_weights(weights(folder, "vae"), lambda state: next(iter(state.values())).view(-1)[0].add_(1))
    assert Checkpoint.open(folder).weights_sha256() != first


def test_hash_of_random_weights(sdxl_configs, tmp_path):
    folder = shutil.copytree(sdxl_configs, tmp_path / "sdxl")
    first = Checkpoint.open(folder, 7).weights_sha256()
    assert Checkpoint.open(sdxl_configs, 7).weights_sha256() == first
    assert Checkpoint.open(sdxl_configs, 8).weights_sha256() != first
    edit_json(folder / "unet" / "config.json", lambda config: config.update(norm_eps=1e-6))
    assert Checkpoint.open(folder, 7).weights_sha256() != first


def test_hash_tells_a_config_that_changes_the_network(folder):
    first = Checkpoint.open(folder).weights_sha256()
    edit_json(folder / "unet" / "config.json", lambda config: config.update(norm_eps=1e-6))
    assert Checkpoint.open(folder).weights_sha256() != first


def test_hash_of_random_weights_is_not_that_of_weights(sdxl_checkpoint):
    assert Checkpoint.open(sdxl_checkpoint, 7).weights_sha256() != Checkpoint.open(sdxl_checkpoint).weights_sha256()


def test_the_shipped_checkpoint_opens():
    from latentrt.demo import CHECKPOINT

    model = Checkpoint.open(CHECKPOINT).model
    assert (model.family, model.native_size, model.time_ids) == ("sdxl", 96, TIME_IDS[6])
