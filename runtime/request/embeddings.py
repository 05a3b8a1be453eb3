"""Text embeddings, given in place of prompts."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.kinds import Kind, is_array

ARRAY = Kind("an array of numbers, on the host", is_array, np.asarray)


@dataclass(frozen=True, eq=False, slots=True)
class Embeddings:
    """Outputs of the text encoders for n prompts: hidden states of all encoders side by side, and pooled texts.

    hidden and negative_hidden: (n, tokens, context width), with tokens a multiple of 77. pooled and negative_pooled:
    (n, pooled width), for models that take them. The negative ones are needed only with guidance. Lists and tensors
    on the host become arrays.

    Raises:
        RequestError: not an array of numbers; hidden has other axes, no prompts, or a number of tokens that is no
            multiple of 77.
    """

    hidden: NDArray[Any]
    pooled: NDArray[Any] | None = None
    negative_hidden: NDArray[Any] | None = None
    negative_pooled: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if getattr(self, name) is not None or name == "hidden":
                object.__setattr__(self, name, ARRAY.read(f"embeddings: {name}", getattr(self, name)))
        shape = np.shape(self.hidden)
        if len(shape) != 3 or not shape[0] or not shape[1] or shape[1] % TOKENS_PER_CHUNK:
            raise RequestError(
                f"embeddings: hidden has shape {list(shape)}; it must be (prompts, tokens, width) with tokens a "
                f"multiple of {TOKENS_PER_CHUNK}"
            )

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def tokens(self) -> int:
        """Tokens per prompt."""
        return int(self.hidden.shape[1])

    def check(self, model: Model, guided: bool) -> None:
        """Check that the U-Net can read these.

        Raises:
            RequestError: an array is missing, has another shape than needed, or is not finite.
        """
        hidden = np.shape(self.hidden)
        wanted: dict[str, tuple[int, ...]] = {"hidden": (*hidden[:2], model.context_width)}
        if model.time_ids:
            wanted["pooled"] = (hidden[0], model.pooled_width)
        if guided:
            wanted |= {f"negative_{name}": shape for name, shape in wanted.items()}
        for name in (field.name for field in fields(self)):
            values = getattr(self, name)
            if name in wanted and (values is None or np.shape(values) != wanted[name]):
                found = "missing" if values is None else f"of shape {list(np.shape(values))}"
                raise RequestError(f"embeddings: {name} is {found}; this model needs {list(wanted[name])}")
            if name in wanted and not np.isfinite(values).all():
                raise RequestError(f"embeddings: {name} holds NaN or infinity; nothing can be drawn from it")
