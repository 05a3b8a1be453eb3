"""The two tokenizers: byte-level BPE in CLIP's file format, with merges learned from the demo's captions."""

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from latentrt.demo.captions import random_caption
from latentrt.demo.scenes import random_scene

__all__ = ["VOCAB_SIZE", "write_tokenizers"]

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = 254
VOCAB_SIZE = 512 + MERGES + 2
"""256 byte symbols, the same with `</w>`, the merges, begin and end."""

CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

MORE_SENTENCES = (
    "a photo of an astronaut riding a horse on the moon, dramatic lighting",
    "an oil painting of a small house beside a lake at sunset, highly detailed",
    "portrait of an old man with a white beard, studio light, sharp focus",
    "a cat sleeping on a wooden table next to a window, morning light",
    "a bowl of fruit, still life, photorealistic, natural colours, gray, brown, dark, light",
    "blurry, low quality, distorted, watermark, text, two shapes, three shapes, empty, nothing else",
    "above, below, under, over, beside, next to, between, hexagon, rectangle, oval, heart, line",
)
"""Sentences with words that are not in captions, so that there are enough pairs for all merges."""


def write_tokenizers(folder: Path) -> None:
    """Write `tokenizer` (padded with the end token) and `tokenizer_2` (padded with "!"), as SDXL's are."""
    rng = Random(0)
    captions = [random_caption(random_scene(rng), rng) for _ in range(4000)]
    vocabulary, merges = vocabulary_of((*captions, *MORE_SENTENCES))
    for name, pad_token in (("tokenizer", EOS), ("tokenizer_2", "!")):
        write_tokenizer(folder / name, vocabulary, merges, pad_token)


def write_tokenizer(folder: Path, vocabulary: dict[str, int], merges: tuple[str, ...], pad_token: str) -> None:
    """Write one tokenizer's folder: vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    specials = {
        "bos_token": {"content": BOS} | special,
        "eos_token": {"content": EOS} | special,
        "pad_token": pad_token,
        "unk_token": {"content": EOS} | special,
    }
    config = specials | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "errors": "replace"}
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n", encoding="utf-8")
    write_json(folder / "special_tokens_map.json", specials)
    write_json(folder / "tokenizer_config.json", config | {"add_prefix_space": False, "do_lower_case": True})


def vocabulary_of(sentences: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """A vocabulary in CLIP's layout with learned merges: ids of the tokens, and the merges ("left right").

    Ids: 256 byte symbols from "!" on, the same with `</w>`, one token per merge, begin, end.

    Raises:
        ValueError: the sentences have too few different words for `MERGES` merges.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Equally frequent pairs merge in the order of their symbols' ids, so the ids are fixed here.
    ends = [symbol + "</w>" for symbol in symbols]
    size = VOCAB_SIZE + len(symbols)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=symbols, special_tokens=ends, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    learned = json.loads(tokenizer.to_str())["model"]["merges"][:MERGES]
    tokens = [*symbols, *ends, *("".join(pair) for pair in learned), BOS, EOS]
    if len(set(tokens)) != VOCAB_SIZE:
        raise ValueError(f"tokenizer: the sentences give {len(set(tokens))} tokens, wanted {VOCAB_SIZE}; add sentences")
    return {token: number for number, token in enumerate(tokens)}, tuple(" ".join(pair) for pair in learned)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file, indented as the libraries do."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
