"""What text encoders and the U-Net are measured on for fp16."""

from pathlib import Path

import pytest
import torch

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.exporter import component_precisions
from latentrt.export.modules import wrap
from latentrt.export.numerics.unet_samples import PROMPTS, TIMESTEPS, noisy_latents, text_sample, unet_sample
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import ComponentSpec


@pytest.fixture(scope="module")
def checkpoint(sdxl_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(sdxl_checkpoint)


def unet_spec(checkpoint: Checkpoint) -> ComponentSpec:
    return component_specs(checkpoint.model, Limits.around(128), component_precisions("fp16", "auto"))["unet"]


def test_prompts_are_tokenised_by_each_encoders_own_tokenizer(checkpoint: Checkpoint) -> None:
    samples = [text_sample(checkpoint, name) for name in ("text_encoder", "text_encoder_2")]
    first, second = (sample["input_ids"] for sample in samples)
    assert first.shape == second.shape == (len(PROMPTS), 77)
    assert first.dtype == torch.int64
    assert samples[0]["clip_skip"].tolist() == [0] * len(PROMPTS)
    assert not torch.equal(first, second)  # another pad token
    begin, end = checkpoint.vocabulary("text_encoder") - 2, checkpoint.vocabulary("text_encoder") - 1
    assert first[0].tolist() == [begin, *[end] * 76]
    assert end not in first[3, :76].tolist()


def test_the_unets_sample_has_its_ports_and_the_encoders_own_outputs(checkpoint: Checkpoint) -> None:
    spec = unet_spec(checkpoint)
    named = unet_sample(checkpoint, spec)
    sizes = {"rows": 4, "tokens": 77, "latent_height": 16, "latent_width": 16}
    assert {name: tuple(values.shape) for name, values in named.items()} == {
        port.name: port.shape(sizes) for port in spec.inputs
    }
    assert {values.dtype for values in named.values()} == {torch.float32}
    assert tuple(named["timestep"].tolist()) == TIMESTEPS
    encoder = wrap("text_encoder_2", checkpoint.network("text_encoder_2", torch.float32), checkpoint.model)
    with torch.no_grad():
        hidden, pooled = encoder(**text_sample(checkpoint, "text_encoder_2"))
    assert torch.equal(named["encoder_hidden_states"][..., -hidden.shape[-1] :], hidden)
    assert torch.equal(named["text_embeds"], pooled)


def test_latents_go_from_noise_to_a_coarse_picture() -> None:
    noise = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = noisy_latents(noise, torch.tensor(TIMESTEPS))
    torch.testing.assert_close(latents[0], noise[0], rtol=0, atol=1e-5)
    for row in latents:
        assert 0.7 < row.std().item() < 1.4
    steps = (latents[:, :, :, 1:] - latents[:, :, :, :-1]).abs().mean(dim=(1, 2, 3))
    assert steps.tolist() == sorted(steps.tolist(), reverse=True)
    assert steps[-1] < steps[0] / 4
