"""CLIP's tokenizer: text to the token rows that a text encoder reads.

Lower-cased byte-level BPE with `</w>` at the end of a word (Radford et al. 2021, arXiv:2103.00020, section 2.4).
The ids equal those of transformers' `CLIPTokenizer`, down to special tokens written out inside a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.errors import BundleError, RequestError
from latentrt.runtime.text.tokenizer_files import SpecialTokens, read_model, read_special_tokens

__all__ = ["Tokenizer"]

WORDS: Final = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""A word before the merges: a contraction, a run of letters, one digit, or a run of anything else."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Turns text into token ids; immutable, and safe to share between threads."""

    backend: tokenizers.Tokenizer
    begin: int
    end: int
    pad: int

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read a checkpoint's tokenizer folder: tokenizer.json or, without it, vocab.json and merges.txt.

        Special tokens come from tokenizer_config.json and special_tokens_map.json, and tokens added to the vocabulary
        from these, tokenizer.json or added_tokens.json, if those exist.

        Raises:
            BundleError: a file is missing, broken or of another kind of tokenizer.
        """
        vocabulary, merges, added = read_model(folder)
        specials = read_special_tokens(folder, added)
        ids = vocabulary | {token.content: index for index, token in specials.added.items()}
        for name, token in specials.named.items():
            if token.content not in ids:
                raise BundleError(
                    f"{folder}: {name} {token.content!r} is not in the vocabulary of {len(ids)} tokens. "
                    "Take the tokenizer's files from one checkpoint"
                )
        backend = _build(folder, vocabulary, merges, specials.named["unk_token"].content)
        _add_tokens(folder, backend, specials)
        return cls(backend, *(ids[specials.named[name].content] for name in ("bos_token", "eos_token", "pad_token")))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of any length, without begin, end and padding.

        Raises:
            RequestError: the text cannot be written as UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise RequestError(
                f"prompt holds U+{code:04X} at position {error.start}: half of a surrogate pair, which is no "
                "character. Remove it, or decode the text as UTF-16"
            ) from error
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def chunks(self, text: str) -> npt.NDArray[np.int64]:
        """Token rows (chunks, 77): begin, up to 75 tokens of the text, end, padding. An empty text gives one row.

        Raises:
            RequestError: the text cannot be written as UTF-8.
        """
        return self.rows(self.encode(text))

    def empty_chunk(self) -> npt.NDArray[np.int64]:
        """The token row (1, 77) of an empty text."""
        return self.rows([])

    def rows(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Token rows (chunks, 77) from a text's ids."""
        room = TOKENS_PER_CHUNK - 2
        starts = range(0, max(1, len(ids)), room)
        rows = np.full((len(starts), TOKENS_PER_CHUNK), self.pad, dtype=np.int64)
        for row, start in zip(rows, starts, strict=True):
            filled = [self.begin, *ids[start : start + room], self.end]
            row[: len(filled)] = filled
        return rows


def _build(
    folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], unknown: str
) -> tokenizers.Tokenizer:
    """The tokenizer without its added tokens."""
    try:
        model = models.BPE(
            vocabulary, merges, unk_token=unknown, continuing_subword_prefix="", end_of_word_suffix="</w>"
        )
    except Exception as error:  # the library raises nothing more precise
        raise BundleError(f"{folder}: vocabulary and merges do not fit together: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


def _add_tokens(folder: Path, backend: tokenizers.Tokenizer, specials: SpecialTokens) -> None:
    """Let the backend find these tokens in a text before it splits words: added ones by id, then special ones."""
    tokens = [specials.added[index] for index in sorted(specials.added)]
    known = {token.content for token in tokens}
    tokens += [token for token in (*specials.named.values(), *specials.more) if token.content not in known]
    backend.add_tokens(tokens)
    for index, token in specials.added.items():
        if (actual := backend.token_to_id(token.content)) != index:
            raise BundleError(
                f"{folder}: added token {token.content!r} should have id {index}, but its vocabulary gives it "
                f"{actual}. Take the tokenizer's files from one checkpoint"
            )
