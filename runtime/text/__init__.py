"""From prompt text to the conditioning that the U-Net reads."""
