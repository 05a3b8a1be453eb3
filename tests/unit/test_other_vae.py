"""Another VAE: a folder or a file, AutoencoderKL or TAESD; what fits no checkpoint is refused."""

import json
import shutil

import pytest
import torch
from checkpoints import randomise
from diffusers import AutoencoderKL, AutoencoderTiny
from families import family_configs
from json_files import edit_json
from originals import original_state
from safetensors.torch import load_file, save_file
from vaes import tiny_taesd

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.family import CLASSES
from latentrt.export.modules import VaeDecoder, VaeEncoder, decode, moments
from latentrt.export.numerics.vae_samples import vae_samples
from latentrt.export.numerics.vae_scaling import fit_vae_to_fp16
from latentrt.export.sources.places import vae_place
from latentrt.runtime.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another AutoencoderKL of the same structure, with a scaling factor of its own."""
    vae = AutoencoderKL(**family_configs("sdxl")["vae"] | {"scaling_factor": 0.5})
    randomise(vae, 77, torch.float32)
    folder = tmp_path_factory.mktemp("other") / "vae-ft"
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taesd") / "taesd"
    tiny_taesd().save_pretrained(folder)
    return folder


def refused(checkpoint, vae):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(checkpoint, vae=vae)
    return str(caught.value)


def vae_state(checkpoint, dtype=torch.float32):
    return dict(checkpoint.network("vae", dtype).state_dict())


def assert_equal(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_folder_replaces_the_vae_and_nothing_else(sdxl_checkpoint, other):
    own, replaced = Checkpoint.open(sdxl_checkpoint), Checkpoint.open(sdxl_checkpoint, vae=other)
    assert_equal(vae_state(replaced), load_file(other / WEIGHTS))
    assert replaced.model == own.model.model_copy(update={"scaling_factor": 0.5})
    for folder in CLASSES.keys() - {"vae"}:
        networks = (checkpoint.network(folder, torch.float32) for checkpoint in (own, replaced))
        found, wanted = (dict(network.state_dict()) for network in networks)
        assert_equal(found, wanted)
    assert own.weights_sha256() != replaced.weights_sha256()
    assert own.provenance()["vae"] == "AutoencoderKL of the checkpoint"
    assert replaced.provenance()["vae"] == "AutoencoderKL of vae-ft"


def test_the_hash_of_a_vae_is_that_of_its_tensors(sdxl_checkpoint, other, taesd, tmp_path):
    """The same VAE in another layout, without a config, has the same one; another VAE has another."""
    network = AutoencoderKL.from_pretrained(other)
    save_file(original_state(network, lambda name: vae_place(name, network.config), ""), tmp_path / "a.safetensors")
    vaes = (None, other, tmp_path / "a.safetensors", taesd)
    own, folder, file, tiny = (Checkpoint.open(sdxl_checkpoint, vae=vae).vae_sha256() for vae in vaes)
    assert folder == file
    assert len({own, folder, tiny}) == 3


def test_the_vae_of_another_checkpoint(sdxl_checkpoint, other, tmp_path):
    (tmp_path / "vae").symlink_to(other)
    (tmp_path / "model_index.json").write_text("{}")
    assert_equal(vae_state(Checkpoint.open(sdxl_checkpoint, vae=tmp_path)), load_file(other / WEIGHTS))


def old_names(state):
    """As diffusers named the VAE's attention at first."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, former in old.items():
        state = {name.replace(f".{new}.", f".{former}."): value for name, value in state.items()}
    return state


@pytest.mark.parametrize("layout", ["diffusers", "old diffusers", "original", "original with prefix"])
def test_a_file_in_any_layout(sdxl_checkpoint, other, tmp_path, layout):
    """Without a config beside it: the checkpoint's own, scaling factor included."""
    network = AutoencoderKL.from_pretrained(other)
    if "original" in layout:
        prefix = "first_stage_model." if "prefix" in layout else ""
        state = original_state(network, lambda name: vae_place(name, network.config), prefix)
    else:
        state = dict(network.state_dict()) if layout == "diffusers" else old_names(network.state_dict())
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "vae.safetensors")
    found = Checkpoint.open(sdxl_checkpoint, vae=tmp_path / "vae.safetensors")
    assert_equal(vae_state(found), {name: value.half().float() for name, value in network.state_dict().items()})
    assert found.model.scaling_factor == 0.13025
    assert found.provenance()["vae"] == "AutoencoderKL of vae.safetensors"


def test_a_file_with_its_config_beside_it(sdxl_checkpoint, other, taesd):
    assert Checkpoint.open(sdxl_checkpoint, vae=other / WEIGHTS).model.scaling_factor == 0.5
    found = Checkpoint.open(sdxl_checkpoint, vae=taesd / WEIGHTS)
    assert found.network_class("vae") is AutoencoderTiny
    assert_equal(vae_state(found), load_file(taesd / WEIGHTS))


def test_taesd_as_one_file_is_known_by_its_keys(sdxl_checkpoint, tmp_path):
    network = AutoencoderTiny()
    save_file(network.state_dict(), tmp_path / "taesd.safetensors")
    found = Checkpoint.open(sdxl_checkpoint, vae=tmp_path / "taesd.safetensors")
    assert found.model.scaling_factor == 1.0
    assert_equal(vae_state(found), dict(network.state_dict()))


def test_a_checkpoint_whose_own_vae_is_taesd(sdxl_checkpoint, taesd, tmp_path):
    folder = shutil.copytree(sdxl_checkpoint, tmp_path / "sdxl")
    shutil.rmtree(folder / "vae")
    shutil.copytree(taesd, folder / "vae")
    edit_json(folder / "model_index.json", lambda index: index.update(vae=["diffusers", "AutoencoderTiny"]))
    assert Checkpoint.open(folder).model == Checkpoint.open(sdxl_checkpoint, vae=taesd).model


# TAESD's arithmetic


def test_taesd_decodes_and_encodes_as_diffusers_does(taesd):
    network = AutoencoderTiny.from_pretrained(taesd).eval()
    generator = torch.Generator().manual_seed(5)
    latent, image = torch.randn(2, 4, 5, 7, generator=generator), torch.rand(2, 3, 40, 56, generator=generator) * 2 - 1
    with torch.no_grad():
        wanted = network.decode(latent).sample
        assert_equal(decode(network, latent), wanted)
        pixels, magnitude = VaeDecoder(network)(latent)
        assert_equal(pixels, ((wanted / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8))
        assert pixels.float().std() > 20
        assert_equal(magnitude, wanted.abs().mean(dim=(1, 2, 3)))
        mean, logvar = VaeEncoder(network)(image)
        assert_equal(mean, network.encode(image).latents)
        assert logvar.unique().tolist() == [-30.0]
        assert moments(network, image).shape == (2, 8, 5, 7)


@pytest.mark.parametrize("component", ["vae_decoder", "vae_encoder"])
def test_taesd_in_fp16_is_measured_and_left_as_it_is(component):
    network, plain = tiny_taesd().eval(), tiny_taesd()
    record, _ = fit_vae_to_fp16(network, component, vae_samples(network, component, 64))
    assert (record.scales, record.islands, record.float32_layers, record.folding_error) == ({}, (), (), 0.0)
    assert 1e-4 < record.relative < 5e-3  # of the latents alone: beside the constant logvar no error would show
    assert 1 < record.largest < 100
    half = "decoder" if component == "vae_decoder" else "encoder"
    convolutions = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert record.ranges.keys() >= {name for name in convolutions if name.startswith(half)}
    rounded = {name: value.half().float() for name, value in plain.state_dict().items()}
    assert_equal(dict(network.state_dict()), rounded)


# What is refused


def test_a_vae_with_other_latents(sdxl_checkpoint, taesd, tmp_path):
    for name, change, message in (
        ("channels", {"latent_channels": 16}, "has 16 latent channels, this checkpoint's own has 4"),
        ("scale", {"block_out_channels": [8, 8, 8]}, "has 4 pixels per latent, this checkpoint's own has 8"),
    ):
        folder = tmp_path / name
        tiny_taesd().save_pretrained(folder)
        edit_json(folder / "config.json", lambda config, change=change: config.update(change))
        assert refused(sdxl_checkpoint, folder) == f"--vae {folder}: {message}. Take a VAE made for this family"


def test_a_network_that_is_no_vae(sdxl_checkpoint):
    message = (
        f"--vae {sdxl_checkpoint / 'unet'}: a UNet2DConditionModel; latentrt serves AutoencoderKL and AutoencoderTiny"
    )
    assert refused(sdxl_checkpoint, sdxl_checkpoint / "unet") == message


def test_a_file_that_is_no_vae(sdxl_checkpoint, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"conv_in.weight": torch.zeros(1)}, file)
    assert refused(sdxl_checkpoint, file).startswith(f"--vae {file}: no VAE: it has no decoder.conv_in.weight (Auto")


def test_a_vae_of_another_size(sdxl_checkpoint, other, tmp_path):
    state = load_file(other / WEIGHTS) | {"decoder.conv_in.bias": torch.zeros(5)}
    save_file(state, tmp_path / "a.safetensors")
    assert "1 mismatched keys in the weights, first decoder.conv_in.bias (5,) (32,)" in refused(
        sdxl_checkpoint, tmp_path / "a.safetensors"
    )


@pytest.mark.parametrize("name", ["missing", "missing.safetensors", "vae.pt"])
def test_a_vae_that_is_not_there(sdxl_checkpoint, tmp_path, name):
    (tmp_path / "vae.pt").write_bytes(b"\x80\x04")
    path = tmp_path / name
    said = f"{path}: a pickle, which can run any code" if name == "vae.pt" else f"--vae {path}: no such file or folder"
    assert refused(sdxl_checkpoint, path).startswith(said)


def test_a_folder_without_a_config(sdxl_checkpoint, tmp_path):
    assert refused(sdxl_checkpoint, tmp_path).startswith(f"{tmp_path / 'config.json'}: missing.")


def test_a_folder_without_weights(sdxl_checkpoint, taesd, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(json.loads((taesd / "config.json").read_text())))
    assert refused(sdxl_checkpoint, tmp_path).startswith(f"{tmp_path}: {WEIGHTS} or ")
