"""From prompts to what the U-Net is conditioned on: tokens, text-encoder outputs, time ids, guidance embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.backends import Binding, Engine
from latentrt.runtime.bundle.model import Model, TextEncoder
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.recent import Recent
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.request import Request
from latentrt.runtime.text.conditioning import Conditioning, condition
from latentrt.runtime.text.prompt_weights import parse_weights
from latentrt.runtime.text.tokenizer import Tokenizer

Encoded = Mapping[str, NDArray[Any]]
"""One text by one encoder: hidden (tokens, width) and, where the encoder has it, pooled (width,)."""


KEPT_TEXTS = 128


KEPT_BINDINGS = 8


@dataclass(frozen=True, slots=True, order=True)
class Text:
    """What one encoder reads for one row: a text, and how many of the encoder's last layers it skips."""

    text: str
    clip_skip: int = 0


Row = tuple[Text, ...] | None
"""One text per encoder; None stands for a row of zeros."""


class PromptEncoder:
    """The tokenizers and text encoders of one bundle. Texts that were encoded last are not encoded again."""

    def __init__(self, model: Model, tokenizers: Mapping[str, Tokenizer], engines: Mapping[str, Engine]):
        self.model = model
        self.tokenizers = tokenizers
        self.engines = engines
        self._bindings: Recent[tuple[str, int], Binding] = Recent(KEPT_BINDINGS)
        self._encoded: Recent[tuple[str, Text, int], Encoded] = Recent(KEPT_TEXTS)

    def longest(self, request: Request) -> tuple[str, int]:
        """The text of the request that needs most tokens, and how many, in whole chunks of 77."""
        if request.embeddings is not None:
            return "", request.embeddings.tokens
        chunks = {
            text: max(len(token_rows(tokenizer, text)[0]) for tokenizer in self.tokenizers.values())
            for text in sorted(request.texts)
        }
        longest = max(chunks, key=lambda text: chunks[text])
        return longest, chunks[longest] * TOKENS_PER_CHUNK

    def encode(self, request: Request, tokens: int) -> Conditioning:
        """Encode every text once, in one call per encoder, and lay the rows out for the U-Net."""
        return condition(request, request.embeddings or self.embed(request, tokens), self.model)

    def embed(self, request: Request, tokens: int) -> Embeddings:
        """The embeddings of a request's prompts and, where it is guided, of its negative prompts."""
        rows = [*(self._negatives(request) if request.guided else ()), *self._prompts(request)]
        parts = [
            self._encode_rows(encoder, [None if row is None else row[index] for row in rows], tokens)
            for index, encoder in enumerate(self.model.text_encoders)
        ]
        hidden = np.concatenate([part["hidden"] for part in parts], axis=-1)
        pooled = np.concatenate([part["pooled"] for part in parts if "pooled" in part] or [hidden[:, 0, :0]], axis=-1)
        count = len(request.prompts)
        negative = (hidden[:-count], pooled[:-count]) if request.guided else (None, None)
        return Embeddings(hidden[-count:], pooled[-count:], *negative)

    def _prompts(self, request: Request) -> list[Row]:
        skip = request.settings["clip_skip"]
        return [self._row(*texts, skip) for texts in zip(request.prompts, request.prompts_2, strict=True)]

    def _negatives(self, request: Request) -> list[Row]:
        """Where no negative prompt is given: zeros or the encoding of an empty text, as the checkpoint says."""
        return [
            None if first is None and second is None and self.model.zero_negative else self._row(first or "", second)
            for first, second in zip(request.negatives, request.negatives_2, strict=True)
        ]

    def _row(self, first: str, second: str | None, clip_skip: int = 0) -> Row:
        texts = (first, first if second is None else second)
        return tuple(Text(text, clip_skip) for text, _ in zip(texts, self.model.text_encoders, strict=False))

    def _encode_rows(self, encoder: TextEncoder, rows: Sequence[Text | None], tokens: int) -> dict[str, NDArray[Any]]:
        """One encoder's hidden states (rows, tokens, width) and, where it has one, pooled text (rows, width)."""
        encoded = self._encode_texts(encoder, sorted({text for text in rows if text is not None}), tokens)
        absent = {name: np.zeros_like(values) for name, values in next(iter(encoded.values())).items()}
        found = [absent if text is None else encoded[text] for text in rows]
        return {name: np.stack([one[name] for one in found]) for name in absent}

    def _encode_texts(self, encoder: TextEncoder, texts: Sequence[Text], tokens: int) -> dict[Text, Encoded]:
        """Every text by itself; those that are not known any more in one call.

        A weight w moves a token's hidden state from that of an empty text, e, to e + w (h - e).
        """
        known = {text: self._encoded.find((encoder.component, text, tokens)) for text in texts}
        fresh = [text for text, encoded in known.items() if encoded is None]
        made = dict(zip(fresh, self._run(encoder, fresh, tokens // TOKENS_PER_CHUNK), strict=True)) if fresh else {}
        for text, encoded in made.items():  # an empty text, which weights need, comes first
            made[text] = self._weighted(encoder, text, encoded, tokens)
            self._encoded.get((encoder.component, text, tokens), partial(made.__getitem__, text))
        return {text: made[text] if encoded is None else encoded for text, encoded in known.items()}

    def _weighted(self, encoder: TextEncoder, text: Text, encoded: Encoded, tokens: int) -> Encoded:
        _, weights = token_rows(self.tokenizers[encoder.tokenizer], text.text)
        if (weights == 1).all():
            return encoded
        empty = replace(text, text="")
        hidden, start = encoded["hidden"], self._encode_texts(encoder, [empty], tokens)[empty]["hidden"]
        column = np.pad(weights.reshape(-1, 1), ((0, tokens - weights.size), (0, 0)), constant_values=1)
        return {**encoded, "hidden": (start + column * (hidden - start)).astype(hidden.dtype)}

    def _run(self, encoder: TextEncoder, texts: Sequence[Text], chunks: int) -> list[Encoded]:
        """One call of an encoder; the pooled text is that of a text's first chunk."""
        tokenizer, engine = self.tokenizers[encoder.tokenizer], self.engines[encoder.component]
        ids = np.concatenate([_padded(tokenizer, text.text, chunks) for text in texts])
        binding = self._bindings.get((encoder.component, len(ids)), lambda: engine.bind({"texts": len(ids)}))
        binding.buffers["input_ids"].write(ids)
        binding.buffers["clip_skip"].write(np.repeat([text.clip_skip for text in texts], chunks))
        binding.run()
        found = {port.name: binding.buffers[port.name].numpy() for port in engine.spec.outputs}
        outputs = {"hidden": found["hidden"].reshape(len(texts), chunks * TOKENS_PER_CHUNK, -1)}
        if "pooled" in found:
            outputs["pooled"] = found["pooled"][::chunks]
        return [{name: values[number] for name, values in outputs.items()} for number in range(len(texts))]

    def forget(self) -> None:
        """Encode every text anew from now on."""
        self._encoded.clear()

    def close(self) -> None:
        """Give back the encoders' buffers, and forget the texts."""
        self._bindings.clear()
        self.forget()


def token_rows(tokenizer: Tokenizer, text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ids of a text that may hold weights, and every token's weight, both (chunks, 77)."""
    fragments = [(tokenizer.encode(part.text), part.weight) for part in parse_weights(text)]
    rows = tokenizer.rows([token for ids, _ in fragments for token in ids])
    flat = np.repeat([weight for _, weight in fragments], [len(ids) for ids, _ in fragments])
    weights = np.ones(rows.shape, np.float32)
    inner = np.pad(flat, (0, weights[:, 1:-1].size - flat.size), constant_values=1)
    weights[:, 1:-1] = inner.reshape(len(rows), -1)
    return rows, weights


def _padded(tokenizer: Tokenizer, text: str, chunks: int) -> NDArray[np.int64]:
    """The text's chunks, then empty ones up to `chunks`, so that all rows of a batch are equally long."""
    own, _ = token_rows(tokenizer, text)
    return np.concatenate([own, *[tokenizer.empty_chunk()] * (chunks - len(own))])
