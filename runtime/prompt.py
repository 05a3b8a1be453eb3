"""From prompts to what the U-Net is conditioned on: tokens, text-encoder outputs, time ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.backends import Binding, Engine
from latentrt.runtime.model import Model, TextEncoder
from latentrt.runtime.recent import Recent
from latentrt.runtime.request import Request
from latentrt.runtime.specs import TOKENS_PER_CHUNK
from latentrt.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The U-Net's inputs that stay the same over all steps, by port (rows, ...); the negative rows come first."""

    inputs: Mapping[str, NDArray[Any]]


Encoded = tuple[NDArray[Any], NDArray[Any]]
"""One text: hidden states (tokens, context width) and pooled text (pooled width)."""

KEPT_TEXTS = 64
KEPT_BINDINGS = 8


class PromptEncoder:
    """The tokenizers and text encoders of one bundle. Texts that were encoded last are not encoded again."""

    def __init__(self, model: Model, tokenizers: Mapping[str, Tokenizer], engines: Mapping[str, Engine]):
        self.model = model
        self.tokenizers = tokenizers
        self.engines = engines
        self._bindings: Recent[tuple[str, int], Binding] = Recent(KEPT_BINDINGS)
        self._encoded: Recent[tuple[str, int], Encoded] = Recent(KEPT_TEXTS)

    def longest(self, request: Request) -> tuple[str, int]:
        """The text of the request that needs most tokens, and how many, in whole chunks of 77."""
        chunks = {
            text: max(len(tokenizer.chunks(text)) for tokenizer in self.tokenizers.values())
            for text in sorted(request.texts)
        }
        longest = max(chunks, key=lambda text: chunks[text])
        return longest, chunks[longest] * TOKENS_PER_CHUNK

    def encode(self, request: Request, tokens: int) -> Conditioning:
        """Encode every text once, in one call per encoder, and lay the rows out for the U-Net."""
        absent = None if self.model.zero_negative else ""  # None stands for a row of zeros
        negatives = [absent if text is None else text for text in request.negatives] if request.guided else []
        rows = [*negatives, *request.prompts]
        encoded = self._encode_texts(sorted({text for text in rows if text is not None}), tokens)
        hidden, pooled = (
            np.stack([_zeros_or(encoded, text)[part] for text in rows]).repeat(request.images, axis=0)
            for part in range(2)
        )
        time_ids = self._time_ids(request)
        return Conditioning({"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": time_ids})

    def _encode_texts(self, texts: Sequence[str], tokens: int) -> dict[str, Encoded]:
        """Every text by itself; those that are not known any more in one call per encoder."""
        known = {text: self._encoded.find((text, tokens)) for text in texts}
        fresh = [text for text, encoded in known.items() if encoded is None]
        made = dict(zip(fresh, self._run_encoders(fresh, tokens), strict=True)) if fresh else {}
        for text in made:
            self._encoded.get((text, tokens), partial(made.__getitem__, text))
        return {text: encoded if encoded is not None else made[text] for text, encoded in known.items()}

    def _run_encoders(self, texts: Sequence[str], tokens: int) -> list[Encoded]:
        outputs = [self._run(encoder, texts, tokens // TOKENS_PER_CHUNK) for encoder in self.model.text_encoders]
        hidden = np.concatenate([found["hidden"].reshape(len(texts), tokens, -1) for found in outputs], axis=-1)
        first_chunk = slice(None, None, tokens // TOKENS_PER_CHUNK)
        pooled = np.concatenate([found["pooled"][first_chunk] for found in outputs if "pooled" in found], axis=-1)
        return list(zip(hidden, pooled, strict=True))

    def _run(self, encoder: TextEncoder, texts: Sequence[str], chunks: int) -> dict[str, NDArray[Any]]:
        tokenizer, engine = self.tokenizers[encoder.tokenizer], self.engines[encoder.component]
        ids = np.concatenate([_padded(tokenizer, text, chunks) for text in texts])
        binding = self._bindings.get((encoder.component, len(ids)), lambda: engine.bind({"texts": len(ids)}))
        binding.buffers["input_ids"].write(ids)
        binding.run()
        return {port.name: binding.buffers[port.name].numpy() for port in engine.spec.outputs}

    def close(self) -> None:
        """Give back the encoders' buffers, and forget the texts."""
        self._bindings.clear()
        self._encoded.clear()

    def _time_ids(self, request: Request) -> NDArray[np.float32]:
        positive = request.conditioning.time_ids(request.height, request.width)
        negative = (request.negative_conditioning or request.conditioning).time_ids(request.height, request.width)
        branches = [negative, positive] if request.guided else [positive]
        return np.repeat(np.array(branches, np.float32), request.count, axis=0)


def _zeros_or(encoded: Mapping[str, Encoded], text: str | None) -> Encoded:
    """A text's encoding; for None, zeros of the same shape as any."""
    if text is not None:
        return encoded[text]
    hidden, pooled = next(iter(encoded.values()))
    return np.zeros_like(hidden), np.zeros_like(pooled)


def _padded(tokenizer: Tokenizer, text: str, chunks: int) -> NDArray[np.int64]:
    """The text's chunks, then empty ones up to `chunks`, so that all rows of a batch are equally long."""
    own = tokenizer.chunks(text)
    return np.concatenate([own, *[tokenizer.empty_chunk()] * (chunks - len(own))])
