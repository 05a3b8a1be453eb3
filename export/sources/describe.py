"""What a file is that is not a checkpoint in an original layout, and what to do with it."""

from latentrt.export.sources.weight_file import TEXT_ENCODER, WeightFile, is_text_encoder


def describe_other(file: WeightFile) -> str:
    """Describe a file that holds no U-Net in an original layout, and say what to do with it."""
    keys = list(file.shapes)
    if any("lora" in key for key in keys):
        return "a LoRA, not a checkpoint. Export a checkpoint with --lora FILE:WEIGHT"
    if is_text_encoder(file):
        return f"{TEXT_ENCODER}, not a checkpoint. Name the checkpoint's folder, which holds its model_index.json"
    if any(key.startswith(("encoder.", "decoder.")) for key in keys):
        return "a VAE, not a checkpoint. Export a checkpoint with --vae FILE"
    if any(key.startswith("down_blocks.") for key in keys):
        return "one network in diffusers format. Name the checkpoint's folder, which holds its model_index.json"
    first = f"its first key is {keys[0]}" if keys else "it is empty"
    return (
        f"not a checkpoint in an original layout of Stable Diffusion 1.x, 2.x or XL (no model.diffusion_model.*; "
        f"{first}). Convert it to diffusers format"
    )
