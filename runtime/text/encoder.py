"""From prompts to embeddings: tokens, prompt weights and the text encoders."""

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
from latentrt.runtime.text.a1111_weights import emphasised
from latentrt.runtime.text.conditioning import Conditioning, condition
from latentrt.runtime.text.prompt_plan import RequestPlan, plan_request
from latentrt.runtime.text.token_rows import padded_rows, token_rows
from latentrt.runtime.text.tokenizer import Tokenizer

Encoded = Mapping[str, NDArray[Any]]
"""One encoder's outputs for one text: hidden (tokens, width) and, if the encoder has it, pooled (width,)."""

KEPT_TEXTS = 128
"""How many encoded texts are kept, per encoder and length."""

KEPT_BINDINGS = 8
"""How many sets of encoder buffers are kept: one per encoder and number of token rows."""


@dataclass(frozen=True, slots=True, order=True)
class Text:
    """A text, the syntax of its weights, and how many of an encoder's last layers it skips."""

    text: str
    clip_skip: int = 0
    syntax: str = "latentrt"


Row = tuple[Text, ...] | None
"""A row of the U-Net: one text per encoder, or None for zeros."""


class PromptEncoder:
    """The tokenizers and text encoders of one bundle. The texts encoded most recently are kept, not encoded again."""

    def __init__(self, model: Model, tokenizers: Mapping[str, Tokenizer], engines: Mapping[str, Engine]):
        self.model = model
        self.tokenizers = tokenizers
        self.engines = engines
        self._bindings: Recent[tuple[str, int], Binding] = Recent(KEPT_BINDINGS)
        self._encoded: Recent[tuple[str, Text, int], Encoded] = Recent(KEPT_TEXTS)

    def longest(self, request: Request) -> tuple[str, int]:
        """The request's longest text, and how many tokens it needs, in whole chunks of 77."""
        if request.embeddings is not None:
            return "", request.embeddings.tokens
        syntax = request.settings["prompt_syntax"]
        rows = [row for row in self._rows(request, plan_request(request)) if row is not None]
        chunks = {
            text: max(len(token_rows(tokenizer, text, syntax)[0]) for tokenizer in self.tokenizers.values())
            for text in sorted({one.text for row in rows for one in row})
        }
        longest = max(chunks, key=lambda text: chunks[text])
        return longest, chunks[longest] * TOKENS_PER_CHUNK

    def encode(self, request: Request, tokens: int) -> Conditioning:
        """The U-Net's conditioning for a request. Every text is encoded once, in one call per encoder."""
        return condition(request, request.embeddings or self.embed(request, tokens), self.model)

    def embed(self, request: Request, tokens: int) -> Embeddings:
        """Embeddings of a request's prompts and, with guidance, of its negative prompts.

        Prompts that are several texts (`prompt_plan`) have as many rows: the first texts of all prompts, then the
        second ones, and so on.
        """
        plan = plan_request(request)
        rows = self._rows(request, plan)
        parts = [
            self._encode_rows(encoder, [None if row is None else row[index] for row in rows], tokens)
            for index, encoder in enumerate(self.model.text_encoders)
        ]
        hidden = np.concatenate([part["hidden"] for part in parts], axis=-1)
        pooled = np.concatenate([part["pooled"] for part in parts if "pooled" in part] or [hidden[:, 0, :0]], axis=-1)
        count = len(request.prompts) * plan.prompt_texts
        negative = (hidden[:-count], pooled[:-count]) if request.guided else (None, None)
        return Embeddings(hidden[-count:], pooled[-count:], *negative)

    def _rows(self, request: Request, plan: RequestPlan) -> list[Row]:
        """The rows of negative prompts, with guidance, and those of prompts.

        Without a negative prompt: zeros or an empty text, as the checkpoint was trained.
        """
        skip, syntax = request.settings["clip_skip"], request.settings["prompt_syntax"]
        rows = [
            None
            if one.texts[number] is None and second is None and self.model.zero_negative
            else self._row(one.texts[number] or "", second, 0, syntax)
            for number in range(plan.negative_texts if request.guided else 0)
            for one, second in zip(plan.negatives, request.negatives_2, strict=True)
        ]
        return rows + [
            self._row(one.texts[number] or "", second, skip, syntax)
            for number in range(plan.prompt_texts)
            for one, second in zip(plan.prompts, request.prompts_2, strict=True)
        ]

    def _row(self, first: str, second: str | None, clip_skip: int, syntax: str) -> Row:
        texts = (first, first if second is None else second)
        return tuple(Text(text, clip_skip, syntax) for text, _ in zip(texts, self.model.text_encoders, strict=False))

    def _encode_rows(self, encoder: TextEncoder, rows: Sequence[Text | None], tokens: int) -> dict[str, NDArray[Any]]:
        """One encoder's hidden states (rows, tokens, width) and, if it has them, pooled texts (rows, width)."""
        encoded = self._encode_texts(encoder, sorted({text for text in rows if text is not None}), tokens)
        zeros = {name: np.zeros_like(values) for name, values in next(iter(encoded.values())).items()}
        outputs = [zeros if text is None else encoded[text] for text in rows]
        return {name: np.stack([output[name] for output in outputs]) for name in zeros}

    def _encode_texts(self, encoder: TextEncoder, texts: Sequence[Text], tokens: int) -> dict[Text, Encoded]:
        """Each text's outputs, weighted; texts that are not kept are encoded in one call, or in few."""
        known = {text: self._encoded.find((encoder.component, text, tokens)) for text in texts}
        fresh = [text for text, encoded in known.items() if encoded is None]
        made: dict[Text, Encoded] = {}
        most = max(1, self.engines[encoder.component].spec.dims["texts"].max * TOKENS_PER_CHUNK // tokens)
        for start in range(0, len(fresh), most):
            part = fresh[start : start + most]
            made |= dict(zip(part, self._run(encoder, part, tokens // TOKENS_PER_CHUNK), strict=True))
        for text, encoded in made.items():  # an empty text, which weights need, comes first
            made[text] = self._weighted(encoder, text, encoded, tokens)
            self._encoded.get((encoder.component, text, tokens), partial(made.__getitem__, text))
        return {text: made[text] if encoded is None else encoded for text, encoded in known.items()}

    def _weighted(self, encoder: TextEncoder, text: Text, encoded: Encoded, tokens: int) -> Encoded:
        """Apply a text's weights: weight w moves a token's hidden state h to e + w (h - e), e being an empty text's.

        Those in AUTOMATIC1111's syntax multiply h, as there.
        """
        _, weights = token_rows(self.tokenizers[encoder.tokenizer], text.text, text.syntax)
        if (weights == 1).all():
            return encoded
        if text.syntax == "a1111":
            own, rest = np.split(encoded["hidden"], [weights.size])
            moved = emphasised(own.reshape(*weights.shape, -1).astype(np.float32), weights)
            return {**encoded, "hidden": np.concatenate([moved.reshape(own.shape).astype(own.dtype), rest])}
        empty = replace(text, text="")
        hidden, origin = encoded["hidden"], self._encode_texts(encoder, [empty], tokens)[empty]["hidden"]
        column = np.pad(weights.reshape(-1, 1), ((0, tokens - weights.size), (0, 0)), constant_values=1)
        return {**encoded, "hidden": (origin + column * (hidden - origin)).astype(hidden.dtype)}

    def _run(self, encoder: TextEncoder, texts: Sequence[Text], chunks: int) -> list[Encoded]:
        """Call an encoder once for all texts. A text's pooled output is that of its first chunk."""
        tokenizer, engine = self.tokenizers[encoder.tokenizer], self.engines[encoder.component]
        ids = np.concatenate([padded_rows(tokenizer, text.text, chunks, text.syntax) for text in texts])
        binding = self._bindings.get((encoder.component, len(ids)), lambda: engine.bind({"texts": len(ids)}))
        binding.buffers["input_ids"].write(ids)
        binding.buffers["clip_skip"].write(np.repeat([text.clip_skip for text in texts], chunks))
        binding.run()
        rows = {port.name: binding.buffers[port.name].numpy() for port in engine.spec.outputs}
        outputs = {"hidden": rows["hidden"].reshape(len(texts), chunks * TOKENS_PER_CHUNK, -1)}
        if "pooled" in rows:
            outputs["pooled"] = rows["pooled"][::chunks]
        return [{name: values[number] for name, values in outputs.items()} for number in range(len(texts))]

    def forget(self) -> None:
        """Drop the encoded texts that are kept."""
        self._encoded.clear()

    def close(self) -> None:
        """Release the encoders' buffers, and drop the texts."""
        self._bindings.clear()
        self.forget()
