"""Checkpoints in one file: the same networks as the folder's, and what is refused, before a weight is read."""

import gzip
import json
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from checkpoints import tensors, tokenizer_vocabulary, write_checkpoint, write_tokenizer
from json_files import edit_json
from originals import family_state, write_single_file
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.random_weights import meta_network
from latentrt.export.sources.families import CONFIGS
from latentrt.export.sources.single_file import PREFIXES, SingleFile
from latentrt.export.sources.tokenizers import MERGES_FILE, vocabulary_files
from latentrt.export.sources.weight_file import WeightFile
from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.text.tokenizer import Tokenizer

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def single(sdxl_checkpoint, tmp_path_factory):
    return write_single_file(sdxl_checkpoint, tmp_path_factory.mktemp("single") / "tiny.safetensors")


def changed(single, target, change, **header):
    """A copy with other tensors."""
    state = load_file(single)
    change(state)
    save_file(state, target, metadata={"format": "pt"} | header)
    return target


def refused(path, error=CheckpointError, **options):
    with pytest.raises(error) as caught:
        Checkpoint.open(path, **options)
    return str(caught.value)


# The same as the folder


def test_networks_equal_those_of_the_folder_to_the_bit(single, sdxl_configs, sdxl_checkpoint):
    file, folder = Checkpoint.open(single, config=sdxl_configs), Checkpoint.open(sdxl_checkpoint)
    assert file.model == folder.model
    torch.testing.assert_close(tensors(file), tensors(folder), rtol=0, atol=0)
    assert file.source.tokenizer("tokenizer_2") == folder.source.tokenizer("tokenizer_2")
    assert not any(file.network(name, torch.float32).training for name in file.folders)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_read_as_float32(sdxl_checkpoint, sdxl_configs, tmp_path, dtype):
    file = write_single_file(sdxl_checkpoint, tmp_path / "half.safetensors", dtype)
    found = Checkpoint.open(file, config=sdxl_configs).network("unet", torch.float32).state_dict()
    wanted = Checkpoint.open(sdxl_checkpoint).network("unet", torch.float32).state_dict()
    assert {value.dtype for value in found.values()} == {torch.float32}
    rounded = {name: value.to(dtype).float() for name, value in wanted.items()}
    torch.testing.assert_close(dict(found), rounded, rtol=0, atol=0)


def test_the_hash_follows_the_file(single, sdxl_configs, tmp_path):
    def one_bit(state):
        state[f"{UNET}out.2.bias"][0] += 1

    first = Checkpoint.open(single, config=sdxl_configs)
    other = Checkpoint.open(changed(single, tmp_path / "other.safetensors", one_bit), config=sdxl_configs)
    assert first.weights_sha256() == Checkpoint.open(single, config=sdxl_configs).weights_sha256()
    assert first.weights_sha256() != other.weights_sha256()
    assert first.provenance()["checkpoint"] == "tiny.safetensors"


# Families


@pytest.mark.parametrize("family", ["sd15", "sd15-inpaint", "sd2", "sd2-v", "sdxl-inpaint", "sdxl-refiner"])
def test_every_family_equals_its_folder_to_the_bit(family, tmp_path):
    """1.x: CLIP, convolutions around transformers. 2.x: OpenCLIP with a layer and a projection that are not used."""
    folder = write_checkpoint(tmp_path / "folder", family)
    file = write_single_file(folder, tmp_path / "model.safetensors")
    found, wanted = Checkpoint.open(file, config=folder), Checkpoint.open(folder)
    assert found.model == wanted.model
    assert found.folders == wanted.folders
    torch.testing.assert_close(tensors(found), tensors(wanted), rtol=0, atol=0)


def full_size(family, channels=4, metadata=None, markers=()):
    """The header of a full-size checkpoint, whose weights are nowhere."""
    shapes = full_size_shapes(family, channels) | dict.fromkeys(markers, ())
    return WeightFile(Path("/nowhere/model.safetensors"), shapes, metadata or {})


@cache
def full_size_shapes(family, channels):
    """Shape of every tensor by key."""
    configs = json.loads((CONFIGS / f"{family}.json").read_text(encoding="utf-8"))
    configs["unet"]["in_channels"] = channels
    parts = {folder: kind for folder, kind in configs["model_index"].items() if folder in PREFIXES and kind[0]}
    kinds = {folder: getattr(import_module(library), name) for folder, (library, name) in parts.items()}
    networks = {folder: meta_network(kind, configs[folder]) for folder, kind in kinds.items()}
    return {key: tuple(value.shape) for key, value in family_state(networks, configs, family).items()}


@pytest.fixture
def open_clip(tmp_path, monkeypatch):
    """A package that brings a vocabulary of CLIP's size: every merge of two byte symbols until it is full."""
    symbols = sorted(ByteLevel.alphabet())
    merges = [f"{first} {second}" for first in symbols for second in symbols]
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    text = "\n".join(("# version", *merges))
    (tmp_path / "open_clip" / MERGES_FILE).write_bytes(gzip.compress(text.encode()))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("family", "channels", "pipeline", "pixels"),
    [
        ("sd15", 4, "StableDiffusionPipeline", 512),
        ("sd15", 9, "StableDiffusionInpaintPipeline", 512),
        ("sd2", 9, "StableDiffusionInpaintPipeline", 512),
        ("sdxl", 4, "StableDiffusionXLPipeline", 1024),
        ("sdxl", 9, "StableDiffusionXLInpaintPipeline", 1024),
        ("sdxl-refiner", 4, "StableDiffusionXLImg2ImgPipeline", 1024),
    ],
)
def test_families_are_told_by_their_shapes(open_clip, family, channels, pipeline, pixels):
    source = SingleFile(full_size(family, channels))
    checkpoint = Checkpoint(source)
    source.check({folder: checkpoint.network_class(folder) for folder in checkpoint.folders})
    assert source.config("", "model_index.json")["_class_name"] == pipeline
    facts = checkpoint.model
    assert (facts.family, facts.unet_channels, facts.native_size) == (family, channels, pixels)
    assert facts.scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("options", "metadata", "markers", "family"),
    [
        ({"prediction_type": "v_prediction"}, {}, (), "sd2-v"),
        ({"prediction_type": "epsilon"}, {}, ("v_pred",), "sd2"),
        ({}, {"modelspec.prediction_type": "v"}, (), "sd2-v"),
        ({}, {"modelspec.prediction_type": "epsilon"}, (), "sd2"),
        ({}, {}, ("v_pred",), "sd2-v"),
    ],
)
def test_sd2_by_what_it_predicts(open_clip, options, metadata, markers, family):
    source = SingleFile(full_size("sd2", metadata=metadata, markers=markers), **options)
    facts = Checkpoint(source).model
    assert (source.family, facts.family) == (family, "sd2")
    assert facts.native_size == (768 if family == "sd2-v" else 512)
    assert facts.scheduler["prediction_type"] == ("v_prediction" if family == "sd2-v" else "epsilon")


def test_sd2_that_does_not_say_what_it_predicts():
    message = (
        r"SD 2\.x model that does not say what it predicts\. Add --prediction-type epsilon \(the 512-pixel models\)"
    )
    with pytest.raises(CheckpointError, match=message):
        SingleFile(full_size("sd2")).config("unet")


def test_markers_of_the_schedule(single, sdxl_configs, tmp_path):
    plain = Checkpoint.open(single, config=sdxl_configs).model.scheduler
    file = changed(single, tmp_path / "v.safetensors", lambda state: state.update(v_pred=torch.tensor(1.0)))
    assert Checkpoint.open(file, config=sdxl_configs).model.scheduler == plain | {"prediction_type": "v_prediction"}
    file = changed(single, tmp_path / "zero.safetensors", lambda state: state.update(ztsnr=torch.tensor(1.0)))
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert Checkpoint.open(file, config=sdxl_configs).model.scheduler == plain | zero
    wanted = plain | zero | {"prediction_type": "sample"}
    found = Checkpoint.open(file, config=sdxl_configs, prediction_type="sample").model.scheduler
    assert found == wanted


def test_edm_files_are_playground_s(single, sdxl_configs, tmp_path):
    """As diffusers' single-file loader reads them: the VAE's moments, its scale, and the scheduler."""
    mean, std = torch.tensor([-1.5, 2.0, 0.5, 0.25]), torch.tensor([8.0, 5.0, 5.5, 4.0])
    moments = {"edm_mean": mean.view(1, 4, 1, 1), "edm_std": std.view(1, 4, 1, 1)}
    file = changed(single, tmp_path / "playground.safetensors", lambda state: state.update(moments))
    checkpoint = Checkpoint.open(file, config=sdxl_configs)
    model = checkpoint.model
    assert (model.latents_mean, model.latents_std, model.scaling_factor) == (tuple(mean), tuple(std), 0.5)
    assert (checkpoint.defaults.sampler, model.scheduler["sigma_data"]) == ("edm_dpmpp_2m", 0.5)
    alone = changed(single, tmp_path / "mean.safetensors", lambda state: state.update(edm_mean=moments["edm_mean"]))
    with pytest.raises(CheckpointError, match="holds edm_mean alone; edm_mean and edm_std go together"):
        Checkpoint.open(alone, config=sdxl_configs)
    short = changed(
        single, tmp_path / "short.safetensors", lambda state: state.update(moments, edm_std=std[:3].clone())
    )
    with pytest.raises(CheckpointError, match="edm_std must hold 4 finite numbers, it holds"):
        Checkpoint.open(short, config=sdxl_configs)


def test_edm_files_of_v_prediction_are_cosxl_s(single, sdxl_configs, tmp_path):
    sigmas = {"edm_vpred.sigma_max": torch.tensor(110.0), "edm_vpred.sigma_min": torch.tensor(0.004)}
    file = changed(single, tmp_path / "cosxl.safetensors", lambda state: state.update(sigmas))
    checkpoint = Checkpoint.open(file, config=sdxl_configs)
    scheduler = checkpoint.model.scheduler
    assert (checkpoint.defaults.sampler, scheduler["prediction_type"]) == ("edm_euler", "v_prediction")
    assert [scheduler[name] for name in ("sigma_max", "sigma_data", "sigma_schedule")] == [110, 1.0, "exponential"]
    assert scheduler["sigma_min"] == pytest.approx(0.004)


@pytest.mark.parametrize(
    "names", [{"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}, {"q": "query", "proj_out": "proj_attn"}]
)
def test_other_names_of_the_vae_s_attention(single, sdxl_checkpoint, sdxl_configs, tmp_path, names):
    def rename(state):
        for key in [key for key in state if ".attn_1." in key]:
            head, _, name = key.partition(".attn_1.")
            part, _, parameter = name.rpartition(".")
            state[f"{head}.attn_1.{names.get(part, part)}.{parameter}"] = state.pop(key)

    file = changed(single, tmp_path / "vae.safetensors", rename)
    found, wanted = (
        Checkpoint.open(path, **how).network("vae", torch.float32).state_dict()
        for path, how in ((file, {"config": sdxl_configs}), (sdxl_checkpoint, {}))
    )
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_pruned_models_are_told_of_their_own_configs(open_clip):
    file = full_size("sdxl")
    shapes = {key: shape for key, shape in file.shapes.items() if ".middle_block." not in key}
    source = SingleFile(WeightFile(file.path, shapes, {}))
    classes = {folder: Checkpoint(source).network_class(folder) for folder in Checkpoint(source).folders}
    with pytest.raises(CheckpointError, match=r"missing keys .* \(SSD-1B, .* with --config FOLDER$"):
        source.check(classes)


# Tokenizers


def test_a_tokenizer_from_an_installed_package(open_clip):
    files = {name: SingleFile(full_size("sdxl")).tokenizer(name) for name in ("tokenizer", "tokenizer_2")}
    vocabulary = json.loads(files["tokenizer"]["vocab.json"])
    assert len(vocabulary) == 49408
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"], vocabulary["!"]) == (49406, 49407, 0)
    assert json.loads(files["tokenizer"]["special_tokens_map.json"])["pad_token"] == "<|endoftext|>"
    assert json.loads(files["tokenizer_2"]["special_tokens_map.json"])["pad_token"] == "!"


def test_an_installed_vocabulary_gives_the_tokens_of_its_merges(tmp_path):
    """The tests' own vocabulary, packed as OpenCLIP packs CLIP's, comes out as it was."""
    vocabulary, merges = tokenizer_vocabulary()
    file = tmp_path / MERGES_FILE
    file.write_bytes(gzip.compress("\n".join(("# version", *merges)).encode()))
    files = vocabulary_files(file)
    assert json.loads(files["vocab.json"]) == vocabulary
    assert files["merges.txt"].decode().split("\n")[1:-1] == list(merges)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("form", ["checkpoint", "files", "json"])
def test_a_tokenizer_that_the_user_names(single, sdxl_checkpoint, sdxl_configs, tmp_path, form, name):
    given = sdxl_checkpoint if form == "checkpoint" else write_tokenizer(tmp_path / "given", tokenizer_format=form)
    source = Checkpoint.open(single, config=sdxl_configs, tokenizer=given)
    source.write_tokenizer(name, tmp_path / "written")
    text = "a red circle on a blue background"
    found, wanted = (Tokenizer.load(path).chunks(text) for path in (tmp_path / "written", sdxl_checkpoint / name))
    assert found.tolist() == wanted.tolist()


def test_no_tokenizer_anywhere(monkeypatch):
    monkeypatch.setattr("latentrt.export.sources.tokenizers.PACKAGES", ("no_such_package",))
    message = (
        r"^/nowhere/model\.safetensors: a single file holds no tokenizer, .* --tokenizer FOLDER .* open_clip_torch$"
    )
    with pytest.raises(CheckpointError, match=message):
        SingleFile(full_size("sdxl")).tokenizer("tokenizer")


def test_a_folder_without_a_tokenizer(single, sdxl_configs, tmp_path):
    message = refused(single, config=sdxl_configs, tokenizer=tmp_path)
    assert message.startswith(
        f"--tokenizer {tmp_path}: holds no tokenizer. Name a folder with vocab.json and merges.txt"
    )


def test_a_tokenizer_of_another_model(single, sdxl_configs, tmp_path):
    given = write_tokenizer(tmp_path / "other")
    edit_json(given / "vocab.json", lambda tokens: tokens.update({"more</w>": len(tokens)}))
    message = (
        "tokenizer has 769 tokens, but its text encoder knows 768. Name the tokenizer of this model with --tokenizer"
    )
    assert message in refused(single, config=sdxl_configs, tokenizer=given)
    (given / "merges.txt").write_text("half a merge\n")
    assert refused(single, config=sdxl_configs, tokenizer=given).startswith(f"{single}: tokenizer: ")


# What is refused


def test_keys_that_are_missing(single, sdxl_configs, tmp_path):
    file = changed(single, tmp_path / "a.safetensors", lambda state: state.pop(f"{UNET}out.0.weight"))
    assert refused(file, config=sdxl_configs) == (
        f"{file}: 1 missing keys in the weights, first {UNET}out.0.weight. The weights belong to another config"
    )


def test_keys_of_another_shape(single, sdxl_configs, tmp_path):
    file = changed(
        single, tmp_path / "a.safetensors", lambda state: state.update({f"{UNET}out.2.bias": torch.zeros(5)})
    )
    assert f"1 mismatched keys in the weights, first {UNET}out.2.bias (5,) (4,)." in refused(file, config=sdxl_configs)


def test_keys_that_are_left_over(single, sdxl_configs, tmp_path):
    more = {f"{UNET}control.{number:02}.weight": torch.zeros(1) for number in range(14)} | {"another": torch.zeros(4)}
    file = changed(single, tmp_path / "a.safetensors", lambda state: state.update(more))
    message = refused(file, config=sdxl_configs)
    assert message.startswith(
        f"{file}: 15 keys belong to no part of a Stable Diffusion checkpoint: another, {UNET}control.00"
    )
    assert f"{UNET}control.10.weight and 3 more. latentrt would ignore what they do" in message


@pytest.mark.parametrize(
    ("prefix", "part"), [("first_stage_model.", "vae"), ("conditioner.embedders.1.", "text_encoder_2")]
)
def test_a_part_that_is_missing(single, sdxl_configs, tmp_path, prefix, part):
    def drop(state):
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]

    file = changed(single, tmp_path / "a.safetensors", drop)
    remedy = "Name one with --vae PATH" if part == "vae" else "Take the complete checkpoint"
    assert re.match(rf"{file}: holds no {part} \(keys {prefix}.*\)\. {remedy}$", refused(file, config=sdxl_configs))


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (
            ["lora_unet_down_blocks_0.lora_up.weight"],
            "a LoRA, not a checkpoint. Export a checkpoint with --lora FILE:WEIGHT",
        ),
        (["encoder.conv_in.weight"], "a VAE, not a checkpoint. Export a checkpoint with --vae FILE"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one network in diffusers format. Name the checkpoint's folder"),
        (
            ["double_blocks.0.img_attn.qkv.weight"],
            "not a checkpoint in an original layout of Stable Diffusion 1.x, 2.x or XL",
        ),
        (
            [],
            "not a checkpoint in an original layout of Stable Diffusion 1.x, 2.x or XL (no model.diffusion_model.*; it",
        ),
    ],
)
def test_files_that_are_something_else(tmp_path, keys, what):
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "a.safetensors")
    assert refused(tmp_path / "a.safetensors").startswith(f"{tmp_path / 'a.safetensors'}: {what}")


def test_a_width_that_no_family_has(single):
    assert re.search(
        r"its U-Net takes text 80 wide; latentrt ships configs for 768 \(sd15\).* with --config", refused(single)
    )


@pytest.mark.parametrize("name", ["model.ckpt", "model.PT"])
def test_a_pickle(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    assert refused(tmp_path / name).startswith(f"{tmp_path / name}: a pickle, which can run any code when read.")


def test_a_file_that_is_cut_off(single, tmp_path):
    file = tmp_path / "half.safetensors"
    file.write_bytes(single.read_bytes()[:100_000])
    assert refused(file).startswith(f"{file}: not a readable safetensors file (")


def test_options_of_the_other_form(single, sdxl_checkpoint, sdxl_configs):
    message = "--random-weights and --variant are for folders in diffusers format, not files"
    assert refused(single, RequestError, random_seed=1) == f"{single}: {message}"
    assert refused(single, RequestError, variant="fp16") == f"{single}: {message}"
    message = f"{sdxl_checkpoint}: --config and --prediction-type: for single files; this folder has its own configs"
    assert refused(sdxl_checkpoint, RequestError, config=sdxl_configs, prediction_type="epsilon") == message
