"""What the U-Net is conditioned on besides encoded text."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from latentrt.runtime.text.conditioning import guidance_embedding


@pytest.mark.parametrize("width", [24, 25, 256])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5, 8.5])
def test_guidance_embedding_equals_diffusers(guidance: float, width: int) -> None:
    """Angles reach 7500, where float32 has steps of 5e-4."""
    scales = torch.tensor([guidance - 1])
    wanted = StableDiffusionPipeline.get_guidance_scale_embedding(None, scales, embedding_dim=width)
    found = guidance_embedding(guidance, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted[0].numpy(), atol=2e-3)
