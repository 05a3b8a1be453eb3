"""From noise to pictures: how a drawing starts, the denoising loop, and the VAE."""
