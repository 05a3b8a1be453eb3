"""The tiny checkpoints are worth testing with: diffusers runs them, and every input shows in the outputs."""

import hashlib

import numpy as np
import pytest
import torch
from checkpoints import write_sdxl
from diffusers import StableDiffusionXLPipeline

# diffusers' Euler scheduler converts a tensor with np.array(), which numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def load(folder, **options):
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(pipe, prompt="a red circle", steps=4, **request):
    generator = torch.Generator().manual_seed(7)
    request = {"num_inference_steps": steps, "width": 128, "height": 128, "output_type": "np"} | request
    return pipe(prompt, generator=generator, **request).images[0]


@pytest.fixture(scope="module")
def unet(sdxl_peer):
    """The U-Net as a function of changed inputs, and its output for unchanged ones."""
    context, _, pooled, _ = sdxl_peer.encode_prompt("a red circle", do_classifier_free_guidance=False)
    inputs = {
        "sample": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor(500.0),
        "context": context,
        "pooled": pooled,
        "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]]),
    }

    @torch.no_grad()
    def run(**changes):
        sample, timestep, context, pooled, time_ids = (inputs | changes).values()
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        return sdxl_peer.unet(sample, timestep, encoder_hidden_states=context, added_cond_kwargs=conditions).sample

    return run


def test_noise_pred_has_unit_size(unet):
    assert 0.5 < unet().std() < 2
    assert unet().mean().abs() < 0.5


@pytest.mark.parametrize("name", ["timestep", "context", "pooled", "size", "crop"])
def test_noise_pred_depends_on(sdxl_peer, unet, name):
    context, _, pooled, _ = sdxl_peer.encode_prompt("a cat on a table", do_classifier_free_guidance=False)
    change = {
        "timestep": {"timestep": torch.tensor(480.0)},
        "context": {"context": context},
        "pooled": {"pooled": pooled},
        "size": {"time_ids": torch.tensor([[256.0, 128, 0, 0, 128, 128]])},
        "crop": {"time_ids": torch.tensor([[128.0, 128, 32, 0, 128, 128]])},
    }[name]
    expected = unet()
    assert (unet(**change) - expected).std() > 0.1 * expected.std()


def test_small_errors_stay_small(unet):
    """A relative change of 1e-4 in the sample is not blown up: parity at 1e-3 can be asked of float32."""
    sample = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = 1e-4 * torch.randn(sample.shape, generator=torch.Generator().manual_seed(1))
    assert (unet(sample=sample + noise) - unet()).std() < 20 * 1e-4


def test_images_use_the_range(sdxl_peer):
    result = image(sdxl_peer)
    assert result.std() > 0.1
    assert np.mean((result == 0) | (result == 1)) < 0.1
    counts, _ = np.histogram(result, 8, (0, 1))
    assert counts.min() > 0.005 * result.size


@pytest.mark.parametrize(
    "request_", [{"prompt": "a cat"}, {"negative_prompt": "blurry"}, {"guidance_scale": 2.0}, {"steps": 5}]
)
def test_images_depend_on_the_request(sdxl_peer, request_):
    assert np.abs(image(sdxl_peer, **request_) - image(sdxl_peer)).mean() > 2 / 255


@pytest.mark.parametrize(
    "options",
    [
        {"max_shard_size": "200KB"},
        {"tokenizer_format": "json"},
        {"legacy_eos": True},
        {"variant": "fp16"},
        {"dtype": torch.float16, "variant": "fp16", "max_shard_size": "200KB"},
    ],
    ids=["sharded", "tokenizer.json", "legacy eos", "variant", "half, variant, sharded"],
)
def test_other_forms_give_the_same_image(sdxl_peer, tmp_path, options):
    other = load(write_sdxl(tmp_path / "other", **options), variant=options.get("variant"))
    tolerance = 4 / 255 if "dtype" in options else 1e-5  # weights rounded to 11 bits
    np.testing.assert_allclose(image(other), image(sdxl_peer), atol=tolerance)


def test_seed_decides_every_byte(sdxl_checkpoint, tmp_path):
    def digests(folder):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    same, other = digests(write_sdxl(tmp_path / "a")), digests(write_sdxl(tmp_path / "b", seed=1))
    assert same == digests(sdxl_checkpoint)
    changed = {name for name in same if same[name] != other[name]}
    assert changed == {name for name in same if name.endswith(".safetensors")}


def test_configs_alone(sdxl_checkpoint, tmp_path):
    """The same configs and tokenizers, no weights."""
    folder = write_sdxl(tmp_path / "configs", weights=False)
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    expected = {path.relative_to(sdxl_checkpoint) for path in sdxl_checkpoint.rglob("*")}
    assert names == {name for name in expected if name.suffix != ".safetensors"}
    for name in names:
        if (folder / name).is_file():
            assert (folder / name).read_text() == (sdxl_checkpoint / name).read_text()


def test_unknown_component(tmp_path):
    with pytest.raises(ValueError, match=r"unknown components \['unnet'\]; overrides are for \['scheduler', "):
        write_sdxl(tmp_path, unnet={})
