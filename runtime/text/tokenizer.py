"""CLIP's tokenizer: text to the token rows that a text encoder reads.

Lower-cased byte-level BPE with `</w>` at the end of a word (Radford et al. 2021, arXiv:2103.00020, section 2.4).
The ids equal those of transformers' `CLIPTokenizer`, down to special tokens written out inside a prompt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.errors import BundleError, RequestError

__all__ = ["Tokenizer"]

WORDS: Final = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""A word before the merges: a contraction, a run of letters, one digit, or a run of anything else."""

END: Final = "<|endoftext|>"
# In transformers' order: a later entry with the same text replaces an earlier one.
SPECIAL_NAMES: Final = {"bos_token": "<|startoftext|>", "eos_token": END, "unk_token": END, "pad_token": END}

Json = Mapping[str, Any]


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

        Special tokens come from tokenizer_config.json and special_tokens_map.json, if those exist.

        Raises:
            BundleError: a file is missing, broken or of another kind of tokenizer.
        """
        vocabulary, merges, added = _read_model(folder)
        specials, added = _read_specials(folder, added)
        ids = vocabulary | {token.content: index for index, token in added.items()}
        for name, token in specials.items():
            if token.content not in ids:
                raise BundleError(
                    f"{folder}: {name} {token.content!r} is not in the vocabulary of {len(ids)} tokens. "
                    "Take the tokenizer's files from one checkpoint"
                )
        backend = _build(folder, vocabulary, merges, specials["unk_token"].content)
        _add_tokens(folder, backend, specials, added)
        return cls(backend, *(ids[specials[name].content] for name in ("bos_token", "eos_token", "pad_token")))

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


def _read_model(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[int, AddedToken]]:
    """The vocabulary, the merges by rank, and the added tokens by id, which only tokenizer.json holds."""
    if (path := folder / "tokenizer.json").is_file():
        return _read_tokenizer_json(path)
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise BundleError(
            f"{folder}: no {' and no '.join(missing)}; a tokenizer folder holds tokenizer.json, "
            "or vocab.json and merges.txt. Copy them from the checkpoint"
        )
    merges_path = folder / "merges.txt"
    # Not splitlines(): it would also split at symbols such as U+0085 that may stand inside a merge.
    lines = _read_text(merges_path).split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    vocab_path = folder / "vocab.json"
    return _checked_vocabulary(vocab_path, _read_json(vocab_path)), _split_merges(merges_path, merges), {}


def _read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[int, AddedToken]]:
    """The parts of tokenizer.json that transformers' CLIPTokenizer reads; its normaliser is always CLIP's own."""
    content = _read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:
        kind = model.get("type") if isinstance(model, dict) else None
        raise BundleError(f"{path}: holds a model of type {kind}; CLIP's tokenizer is a BPE model with merges")
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise BundleError(f"{path}: added_tokens must be a list of objects with 'id' and 'content'")
    added = _tokens_by_id(path, {entry["id"]: entry for entry in entries})
    return _checked_vocabulary(path, model.get("vocab")), _split_merges(path, model["merges"]), added


def _read_specials(folder: Path, added: dict[int, AddedToken]) -> tuple[dict[str, AddedToken], dict[int, AddedToken]]:
    """The four special tokens by name, and all added tokens by id.

    Precedence is that of transformers: `added_tokens_decoder` in tokenizer_config.json replaces special_tokens_map.json
    and the added tokens of tokenizer.json; without it special_tokens_map.json wins over tokenizer_config.json.
    """
    path = folder / "tokenizer_config.json"
    config = _read_json(path, missing={})
    if decoder := config.get("added_tokens_decoder"):
        added = _tokens_by_id(path, decoder)
    else:
        config = {**config, **_read_json(folder / "special_tokens_map.json", missing={})}
    by_content = {token.content: token for token in added.values()}
    specials = {}
    for name, default in SPECIAL_NAMES.items():
        token = _token(path, config.get(name) or default, special=True)
        specials[name] = by_content.get(token.content, token)
    return specials, added


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


def _add_tokens(
    folder: Path,
    backend: tokenizers.Tokenizer,
    specials: Mapping[str, AddedToken],
    added: Mapping[int, AddedToken],
) -> None:
    """Let the backend find these tokens in a text before it splits words: added ones by id, then special ones."""
    tokens = [added[index] for index in sorted(added)]
    known = {token.content for token in tokens}
    tokens += [token for token in specials.values() if token.content not in known]
    backend.add_tokens(tokens)
    for index, token in added.items():
        if (actual := backend.token_to_id(token.content)) != index:
            raise BundleError(
                f"{folder}: added token {token.content!r} should have id {index}, but its vocabulary gives it "
                f"{actual}. Take the tokenizer's files from one checkpoint"
            )


def _checked_vocabulary(path: Path, value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not value or not all(type(index) is int for index in value.values()):
        raise BundleError(f"{path}: the vocabulary must be an object that maps each token to its number")
    return value


def _split_merges(path: Path, merges: Any) -> list[tuple[str, str]]:
    if not isinstance(merges, list):
        raise BundleError(f"{path}: the merges must be a list, not {merges!r}")
    pairs = []
    for rank, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or [type(part) for part in parts] != [str, str]:
            raise BundleError(f"{path}: merge {rank} is {merge!r}; a merge is two tokens with one space between them")
        pairs.append((parts[0], parts[1]))
    return pairs


def _tokens_by_id(path: Path, entries: Any) -> dict[int, AddedToken]:
    if not isinstance(entries, dict):
        raise BundleError(f"{path}: added_tokens_decoder must be an object that maps each id to its token")
    for index in entries:
        if not str(index).isdecimal():
            raise BundleError(f"{path}: added token id {index!r} is not a number")
    return {int(index): _token(path, entry) for index, entry in entries.items()}


def _token(path: Path, value: Any, special: bool = False) -> AddedToken:
    """A token from JSON: its text alone, or an object with its text and how it is matched."""
    if isinstance(value, str):
        return AddedToken(value, special=special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise BundleError(f"{path}: a special token must be a text or an object with 'content', not {value!r}")
    flags = {name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=special or value.get("special", False), **flags)


def _read_json(path: Path, missing: Json | None = None) -> Json:
    """The object in a JSON file; `missing`, if given, stands for a file that does not exist."""
    if missing is not None and not path.is_file():
        return missing
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise BundleError(f"{path}: not valid JSON ({error}). Copy it again from the checkpoint") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path}: cannot be read as UTF-8 text ({error}). Copy it again from the checkpoint"
        ) from error
