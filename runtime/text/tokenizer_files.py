"""The files of a CLIP tokenizer's folder, in every form that transformers writes.

vocab.json, merges.txt        vocabulary and merges
tokenizer.json                both of these, and the added tokens; transformers 5 writes it in place of them
tokenizer_config.json         the special tokens; from transformers 4.34 on, all added tokens by id
special_tokens_map.json       the special tokens, of transformers 4
added_tokens.json             added tokens, such as learned words: text -> id, of transformers before 4.34

Only vocabulary and merges must be there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken

from latentrt.runtime.errors import BundleError

__all__ = ["SpecialTokens", "read_model", "read_special_tokens"]

END: Final = "<|endoftext|>"
# In transformers' order: a later entry with the same text replaces an earlier one.
SPECIAL_NAMES: Final = {"bos_token": "<|startoftext|>", "eos_token": END, "unk_token": END, "pad_token": END}
EXTRA_NAMES: Final = ("extra_special_tokens", "additional_special_tokens")
"""Where transformers 5 and 4 list further special tokens."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Tokens found in a text before it is split: `named` by name, `added` by id, and `more`, whose ids follow."""

    named: Mapping[str, AddedToken]
    added: Mapping[int, AddedToken]
    more: tuple[AddedToken, ...]


def read_model(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[int, AddedToken]]:
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


def read_special_tokens(folder: Path, added: Mapping[int, AddedToken]) -> SpecialTokens:
    """The special tokens, and all added ones; `added` are those of tokenizer.json.

    Precedence is that of transformers: `added_tokens_decoder` in tokenizer_config.json replaces all other files;
    without it special_tokens_map.json wins over tokenizer_config.json, and tokenizer.json over added_tokens.json.

    Raises:
        BundleError: a file is broken.
    """
    path = folder / "tokenizer_config.json"
    config = _read_json(path, missing={})
    decoder = config.get("added_tokens_decoder")
    if not decoder:
        config = {**config, **_read_json(folder / "special_tokens_map.json", missing={})}
    more = _extra_tokens(path, config)
    by_id = _tokens_by_id(path, decoder) if decoder else _read_added_tokens(folder, config, more) | dict(added)
    by_content = {token.content: token for token in by_id.values()}
    named = {}
    for name, default in SPECIAL_NAMES.items():
        token = _token(path, config.get(name) or default, special=True)
        named[name] = by_content.get(token.content, token)
    return SpecialTokens(named, by_id, more)


def _extra_tokens(path: Path, config: Json) -> tuple[AddedToken, ...]:
    """Special tokens beyond the four that CLIP uses: a list, or an object whose values are the tokens."""
    extra: Any = next((config[name] for name in EXTRA_NAMES if config.get(name)), [])
    values = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(values, list):
        raise BundleError(f"{path}: extra special tokens must be a list or an object of tokens, not {values!r}")
    return tuple(_token(path, value, special=True) for value in values)


def _read_added_tokens(folder: Path, config: Json, more: tuple[AddedToken, ...]) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json by id; a learned word is matched in any case, a special token as it is."""
    path = folder / "added_tokens.json"
    entries = _read_json(path, missing={})
    if not all(type(index) is int for index in entries.values()):
        raise BundleError(f"{path}: must map each token to its number. Copy it again from the checkpoint")
    named = (_token(path, config[name]) for name in SPECIAL_NAMES if config.get(name))
    special = {token.content for token in (*named, *more)}
    return {
        index: AddedToken(text, normalized=text not in special, special=text in special)
        for text, index in entries.items()
    }


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
