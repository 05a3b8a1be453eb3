"""From prompts to the conditioning that the U-Net reads."""
