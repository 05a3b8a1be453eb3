"""From noise to pictures: the start of a drawing, the denoising loop, and the VAE."""
