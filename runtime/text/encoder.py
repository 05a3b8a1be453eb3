"""From prompts to embeddings: tokens, prompt weights and the text encoders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.backends import Backend, Engine
from latentrt.runtime.backends.call import EngineCall
from latentrt.runtime.bundle.lora_slots import STRENGTHS
from latentrt.runtime.bundle.model import Model, TextEncoder
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.lora.bank import LoraBank
from latentrt.runtime.lora.mix import Mix, Strengths
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

KEPT_CALLS = 8
"""How many bound encoders are kept: one per encoder and number of token rows."""


@dataclass(frozen=True, slots=True, order=True)
class Text:
    """A text, the syntax of its weights, how many layers of an encoder it skips, and the LoRAs that change it."""

    text: str
    clip_skip: int = 0
    syntax: str = "latentrt"
    loras: Strengths = ()


Row = tuple[Text, ...] | None
"""A row of the U-Net: one text per encoder, or None for zeros."""


class PromptEncoder:
    """The tokenizers and text encoders of one bundle. The texts encoded most recently are kept, not encoded again."""

    def __init__(
        self,
        backend: Backend,
        model: Model,
        tokenizers: Mapping[str, Tokenizer],
        engines: Mapping[str, Engine],
        loras: LoraBank,
    ):
        self.backend = backend
        self.model = model
        self.loras = loras
        self.tokenizers = tokenizers
        self.engines = engines
        self._calls: Recent[tuple[str, int], EngineCall] = Recent(KEPT_CALLS)
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

    def encode(self, request: Request, tokens: int) -> Callable[[], Conditioning]:
        """Start encoding a request's texts, each once, in one call per encoder.

        Calling what this returns waits for them and gives the U-Net's conditioning.
        """
        if request.embeddings is None:
            begun = self._begin(request, tokens)
            return lambda: condition(request, begun(), self.model)
        given = request.embeddings
        return lambda: condition(request, given, self.model)

    def embed(self, request: Request, tokens: int) -> Embeddings:
        """Embeddings of a request's prompts and, with guidance, of its negative prompts.

        Prompts that are several texts (`prompt_plan`) have as many rows: the first texts of all prompts, then the
        second ones, and so on.
        """
        return self._begin(request, tokens)()

    def _begin(self, request: Request, tokens: int) -> Callable[[], Embeddings]:
        """Enqueue every encoder, so that none waits for the host; the function returned waits for all."""
        plan = plan_request(request)
        rows = self._rows(request, plan)
        begun = [
            self._begin_rows(encoder, [None if row is None else row[index] for row in rows], tokens)
            for index, encoder in enumerate(self.model.text_encoders)
        ]

        def embeddings() -> Embeddings:
            # The last encoder first: when it is done, so are the others, and one wait will do.
            parts = [rows() for rows in reversed(begun)][::-1]
            hidden = np.concatenate([part["hidden"] for part in parts], axis=-1)
            pooled = [part["pooled"] for part in parts if "pooled" in part] or [hidden[:, 0, :0]]
            count = len(request.prompts) * plan.prompt_texts
            return _split(hidden, np.concatenate(pooled, axis=-1), count, guided=request.guided)

        return embeddings

    def _rows(self, request: Request, plan: RequestPlan) -> list[Row]:
        """The rows of negative prompts, with guidance, and those of prompts.

        Without a negative prompt: zeros or an empty text, as the checkpoint was trained.
        """
        skip, syntax = request.settings["clip_skip"], request.settings["prompt_syntax"]
        rows = [
            None
            if one.texts[number] is None and second is None and self.model.zero_negative
            else self._row(one.texts[number] or "", second, loras, 0, syntax)
            for number in range(plan.negative_texts if request.guided else 0)
            for one, second, loras in zip(plan.negatives, request.negatives_2, request.loras, strict=True)
        ]
        return rows + [
            self._row(one.texts[number] or "", second, loras, skip, syntax)
            for number in range(plan.prompt_texts)
            for one, second, loras in zip(plan.prompts, request.prompts_2, request.loras, strict=True)
        ]

    def _row(self, first: str, second: str | None, loras: Mix, clip_skip: int, syntax: str) -> Row:
        texts = (first, first if second is None else second)
        return tuple(
            Text(text, clip_skip, syntax, self.loras.strengths(loras, encoder.component))
            for text, encoder in zip(texts, self.model.text_encoders, strict=False)
        )

    def _begin_rows(
        self, encoder: TextEncoder, rows: Sequence[Text | None], tokens: int
    ) -> Callable[[], dict[str, NDArray[Any]]]:
        """One encoder's hidden states (rows, tokens, width) and, if it has them, pooled texts (rows, width)."""
        begun = self._begin_texts(encoder, sorted({text for text in rows if text is not None}), tokens)

        def stacked() -> dict[str, NDArray[Any]]:
            encoded = begun()
            zeros = {name: np.zeros_like(values) for name, values in next(iter(encoded.values())).items()}
            outputs = [zeros if text is None else encoded[text] for text in rows]
            return {name: np.stack([output[name] for output in outputs]) for name in zeros}

        return stacked

    def _begin_texts(
        self, encoder: TextEncoder, texts: Sequence[Text], tokens: int
    ) -> Callable[[], dict[Text, Encoded]]:
        """Each text's outputs, weighted; texts that are not kept are encoded in one call, or in few."""
        known = {text: self._encoded.find((encoder.component, text, tokens)) for text in texts}
        tokenizer = self.tokenizers[encoder.tokenizer]
        weights = {
            text: token_rows(tokenizer, text.text, text.syntax)[1] for text, found in known.items() if found is None
        }
        empty = {replace(text, text="") for text in weights if _moves_from_empty(text, weights[text])}
        known |= {text: self._encoded.find((encoder.component, text, tokens)) for text in empty}
        fresh = sorted(text for text, found in known.items() if found is None)
        run = self._run_parts(encoder, fresh, tokens)

        def encoded() -> dict[Text, Encoded]:
            made = {text: found for text, found in known.items() if found is not None}
            made |= zip(fresh, run(), strict=True)
            for text in fresh:  # an empty text, which weights need, comes first
                made[text] = _weighted(text, made, weights.get(text))
                self._encoded.get((encoder.component, text, tokens), partial(made.__getitem__, text))
            return made

        return encoded

    def _run_parts(self, encoder: TextEncoder, texts: Sequence[Text], tokens: int) -> Callable[[], list[Encoded]]:
        """Call an encoder for as many texts at once as it takes."""
        most = max(1, self.engines[encoder.component].spec.dims["texts"].max * TOKENS_PER_CHUNK // tokens)
        done: list[Encoded] = []
        take: Callable[[], list[Encoded]] = list
        for start in range(0, len(texts), most):
            done += take()  # what a call has computed is taken before it is made again
            take = self._run(encoder, texts[start : start + most], tokens // TOKENS_PER_CHUNK)
        return lambda: done + take()

    def _run(self, encoder: TextEncoder, texts: Sequence[Text], chunks: int) -> Callable[[], list[Encoded]]:
        """Call an encoder once for all texts. A text's pooled output is that of its first chunk."""
        tokenizer, engine = self.tokenizers[encoder.tokenizer], self.engines[encoder.component]
        ids = np.concatenate([padded_rows(tokenizer, text.text, chunks, text.syntax) for text in texts])
        slots = self.loras.buffers(encoder.component)
        call = self._calls.get(
            (encoder.component, len(ids)), lambda: EngineCall(self.backend, engine, {"texts": len(ids)}, slots)
        )
        inputs = {"input_ids": ids, "clip_skip": np.repeat([text.clip_skip for text in texts], chunks)}
        if slots:
            rows = [row for text in texts if (row := self.loras.row(text.loras)) is not None]
            inputs[STRENGTHS] = np.repeat(rows, chunks, axis=0)
        call.run(inputs)
        fetched = call.fetch()

        def outputs() -> list[Encoded]:
            rows = fetched()
            outputs = {"hidden": rows["hidden"].reshape(len(texts), chunks * TOKENS_PER_CHUNK, -1)}
            if "pooled" in rows:
                outputs["pooled"] = rows["pooled"][::chunks]
            return [{name: values[number] for name, values in outputs.items()} for number in range(len(texts))]

        return outputs

    def forget(self) -> None:
        """Drop the encoded texts that are kept."""
        self._encoded.clear()

    def close(self) -> None:
        """Release the encoders' buffers, and drop the texts."""
        self._calls.clear()
        self.forget()


def _split(hidden: NDArray[Any], pooled: NDArray[Any], count: int, *, guided: bool) -> Embeddings:
    """The last `count` rows are the prompts'; with guidance, those before them the negative prompts'."""
    negative = (hidden[:-count], pooled[:-count]) if guided else (None, None)
    return Embeddings(hidden[-count:], pooled[-count:], *negative)


def _moves_from_empty(text: Text, weights: NDArray[np.float32]) -> bool:
    """Whether weights move this text's hidden states away from an empty text's; see `_weighted`."""
    return text.syntax != "a1111" and bool((weights != 1).any())


def _weighted(text: Text, encoded: Mapping[Text, Encoded], weights: NDArray[np.float32] | None) -> Encoded:
    """Apply a text's weights: weight w moves a token's hidden state h to e + w (h - e), e being an empty text's.

    Those in AUTOMATIC1111's syntax multiply h, as there.
    """
    own = encoded[text]
    if weights is None or (weights == 1).all():
        return own
    hidden = own["hidden"]
    if text.syntax == "a1111":
        weighted, rest = np.split(hidden, [weights.size])
        moved = emphasised(weighted.reshape(*weights.shape, -1).astype(np.float32), weights)
        return {**own, "hidden": np.concatenate([moved.reshape(weighted.shape).astype(hidden.dtype), rest])}
    origin = encoded[replace(text, text="")]["hidden"]
    column = np.pad(weights.reshape(-1, 1), ((0, len(hidden) - weights.size), (0, 0)), constant_values=1)
    return {**own, "hidden": (origin + column * (hidden - origin)).astype(hidden.dtype)}
