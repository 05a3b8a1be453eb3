"""What files and folders are called: links into a cache, paths that are not there, variants, words, other layouts."""

import logging
import re
import shutil

import pytest
import torch
from checkpoints import tensors, write_checkpoint
from json_files import edit_json
from originals import write_single_file
from safetensors.torch import load_file, save_file

from latentrt.export.checkpoint import Checkpoint
from latentrt.runtime.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder and a single file of each family."""
    root = tmp_path_factory.mktemp("families")
    for family in ("sd15", "sd2", "sdxl"):
        write_single_file(write_checkpoint(root / family, family), root / f"{family}.safetensors")
    return root


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders / "sd15", tmp_path / "sd15")


def refused(message, path, **options):
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path, **options)


def assert_same(found, wanted):
    torch.testing.assert_close(tensors(found), tensors(wanted), rtol=0, atol=0)


def test_links_into_a_cache_keep_their_names(folders, tmp_path):
    """As Hugging Face's cache keeps files: by a hash, with links that carry the names."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, name in enumerate(("vae/config.json", f"vae/{WEIGHTS}.safetensors")):
        shutil.copy(folders / "sd15" / name, blobs / f"{number:064x}")
        (snapshot / name.removeprefix("vae/")).symlink_to(blobs / f"{number:064x}")
    edit_json(blobs / f"{0:064x}", lambda config: config.update(scaling_factor=0.5))
    file = snapshot / f"{WEIGHTS}.safetensors"
    assert Checkpoint.open(folders / "sd15", vae=file).model.scaling_factor == 0.5
    (snapshot / "model.ckpt").symlink_to(blobs / f"{1:064x}")
    refused(rf"^{snapshot}/model\.ckpt: a pickle", snapshot / "model.ckpt")
    (snapshot / "model.safetensors").symlink_to(folders / "sd15.safetensors")
    found = Checkpoint.open(snapshot / "model.safetensors", config=folders / "sd15")
    assert found.provenance()["checkpoint"] == "model.safetensors"
    assert found.path == snapshot / "model.safetensors"


@pytest.mark.parametrize("option", ["", "vae", "config", "tokenizer"])
def test_paths_that_are_not_there(folders, tmp_path, option):
    gone = tmp_path / "sd_xl_base_1.0.safetensor"
    path, options = (folders / "sd15.safetensors", {option: gone}) if option else (gone, {})
    named = f"--{option} " if option else ""
    refused(rf"^{named}{re.escape(str(gone))}: no such file or folder\. latentrt downloads nothing", path, **options)


def test_a_text_encoder_s_file_is_named_as_one(folders):
    file = folders / "sd15" / "text_encoder" / "model.safetensors"
    refused(r"a text encoder \(CLIP\), not a checkpoint", file)
    refused(r"--vae .*: a text encoder \(CLIP\), no VAE\. Name the VAE's", folders / "sd15", vae=file)


def test_another_config_beside_a_vae(folders, tmp_path):
    """A folder of files, with the config of something else among them."""
    shutil.copy(folders / "sd15" / "vae" / f"{WEIGHTS}.safetensors", tmp_path / "vae.safetensors")
    shutil.copy(folders / "sd15" / "text_encoder" / "config.json", tmp_path)
    found = Checkpoint.open(folders / "sd15", vae=tmp_path / "vae.safetensors")
    assert_same(found, Checkpoint.open(folders / "sd15"))


def test_the_index_names_the_scheduler(copy, caplog):
    edit_json(copy / "model_index.json", lambda index: index.update(scheduler=["diffusers", "LCMScheduler"]))
    with caplog.at_level(logging.WARNING):
        checkpoint = Checkpoint.open(copy)
    assert checkpoint.model.scheduler["_class_name"] == "LCMScheduler"
    assert checkpoint.defaults.sampler == "lcm"
    assert re.search(r"model_index\.json names LCMScheduler, scheduler_config\.json \w+; the index", caplog.text)


@pytest.mark.parametrize("word", ["v", "v_prediction", "V-Prediction", "velocity", "epsilon", "eps", "x0"])
def test_words_for_the_prediction(folders, tmp_path, word):
    save_file(load_file(folders / "sd15.safetensors"), tmp_path / "m", metadata={"modelspec.prediction_type": word})
    wanted = {"e": "epsilon", "x": "sample"}.get(word[0], "v_prediction")
    assert Checkpoint.open(tmp_path / "m", config=folders / "sd15").model.scheduler["prediction_type"] == wanted


def test_an_unknown_word_for_the_prediction(folders, tmp_path):
    save_file(load_file(folders / "sd15.safetensors"), tmp_path / "m", metadata={"modelspec.prediction_type": "flow"})
    refused(
        r"prediction_type in its header is 'flow'; .* with --prediction-type", tmp_path / "m", config=folders / "sd15"
    )
    options = {"config": folders / "sd15", "prediction_type": "epsilon"}
    assert Checkpoint.open(tmp_path / "m", **options).model.scheduler["prediction_type"] == "epsilon"


def projection(key):
    return key.replace("1.model.text_projection", "1.model.text_projection.weight")


@pytest.mark.parametrize(
    ("family", "rename"),
    [
        ("sd2", lambda key: key.replace("cond_stage_model.", "conditioner.embedders.0.")),
        ("sd15", lambda key: key.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")),
        ("sdxl", lambda key: key.replace("embedders.0.transformer.text_model.", "embedders.0.transformer.")),
        ("sdxl", projection),
    ],
)
def test_layouts_of_other_tools(folders, tmp_path, family, rename):
    """sd_turbo, NovelAI's and its merges, diffusers' scripts with transformers 5, and their projection."""
    state = load_file(folders / f"{family}.safetensors")
    changed = {
        rename(key): value.T if rename is projection and rename(key) != key else value for key, value in state.items()
    }
    assert changed.keys() != state.keys()
    save_file({key: value.contiguous() for key, value in changed.items()}, tmp_path / "m.safetensors")
    assert_same(Checkpoint.open(tmp_path / "m.safetensors", config=folders / family), Checkpoint.open(folders / family))


def test_a_variant_that_one_network_has(copy):
    """The others' plain weights are read, as by diffusers."""
    file = copy / "unet" / f"{WEIGHTS}.safetensors"
    state = {key: value + 1 for key, value in load_file(file).items()}
    save_file(state, file.with_name(f"{WEIGHTS}.non_ema.safetensors"), metadata={"format": "pt"})
    plain, found = tensors(Checkpoint.open(copy)), tensors(Checkpoint.open(copy, variant="non_ema"))
    torch.testing.assert_close(found["unet"], state, rtol=0, atol=0)
    torch.testing.assert_close(found["vae"], plain["vae"], rtol=0, atol=0)
    refused(r"no network has weights of the variant bf16\. Leave out --variant", copy, variant="bf16")


def test_a_variant_that_nobody_named(copy):
    for file in copy.glob("*/*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".bf16.safetensors")))
    refused(r"is missing, but there is the variant bf16\. Add --variant bf16", copy)
    assert Checkpoint.open(copy, variant="bf16").network("vae", torch.float32)
