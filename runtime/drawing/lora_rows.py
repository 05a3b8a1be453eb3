"""The rows of LoRA strengths among the U-Net's inputs."""

from collections.abc import Sequence

import numpy as np

from latentrt.runtime.bundle.lora_slots import STRENGTHS
from latentrt.runtime.drawing.picture import Picture
from latentrt.runtime.lora.bank import LoraBank


def fit_loras(pictures: Sequence[Picture], bank: LoraBank) -> bool:
    """Give every picture the strengths (r, 1, R) that its LoRAs have in this pipeline's columns, or none without room.

    Pictures may come from another pipeline, and LoRAs may have been loaded anew. Returns whether anything changed.

    Raises:
        RequestError: a picture's LoRA is not loaded here.
    """
    rows = [bank.row(picture.loras) for picture in pictures]
    changed = False
    for picture, row in zip(pictures, rows, strict=True):
        before = picture.inputs.get(STRENGTHS)
        others = {name: values for name, values in picture.inputs.items() if name != STRENGTHS}
        if row is None:
            if before is not None:
                picture.inputs, changed = others, True
            continue
        wanted = np.broadcast_to(row, (len(others["encoder_hidden_states"]), *row.shape))
        if before is None or not np.array_equal(before, wanted):
            picture.inputs, changed = {**others, STRENGTHS: wanted}, True
    return changed
