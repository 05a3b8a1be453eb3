"""Facts about a LoRA outside its tensors: PEFT's config beside it, diffusers' header, folders, names of encoders."""

import json
import math

import pytest
import torch
from checkpoints import tensors
from loras import LINEAR, TEXTS, expected, write_lora
from safetensors.torch import load_file, save_file

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.sources.lora import LoraFile
from latentrt.runtime.errors import CheckpointError

BASE = "base_model.model."


@pytest.fixture(scope="module")
def plain(sdxl_checkpoint):
    return tensors(Checkpoint.open(sdxl_checkpoint))


def merged(folder, path, weight=1.0):
    return tensors(Checkpoint.open(folder, loras=[LoraFile(path, weight)]))


def write_adapter(folder, changes=LINEAR[:2], rank=4, **config):
    """A folder as PEFT's save_pretrained writes it for one network; no config at all if none is given."""
    folder.mkdir(parents=True, exist_ok=True)
    file = write_lora(folder / "adapter_model.safetensors", "peft", changes, rank=rank)
    state = {key.replace(f"{changes[0].folder}.", BASE): value for key, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    if config:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank} | config))
    return folder


def assert_scales(found, plain, changes, scales, rank=4):
    for number, (change, scale) in enumerate(zip(changes, scales, strict=True)):
        wanted = expected(plain[change.folder], change, number, rank=rank, scale=scale)
        torch.testing.assert_close(found[change.folder][change.key].double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({"lora_alpha": 16}, (4, 4)),
        ({"lora_alpha": 16, "use_rslora": True}, (8, 8)),
        ({"lora_alpha": 16, "alpha_pattern": {"attn2.to_k": 2}}, (4, 0.5)),
        ({"lora_alpha": 16, "alpha_pattern": {r".*attn\d\.to_k": 2}}, (4, 0.5)),
        ({"lora_alpha": 16, "r": 64, "rank_pattern": {"to_q": 4, "to_k": 4}}, (4, 4)),
        ({"r": 4}, (2, 2)),
    ],
)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_config_of_peft_beside_the_file(sdxl_checkpoint, plain, tmp_path, config, scales, named):
    folder = write_adapter(tmp_path / "adapter", **config)
    found = merged(sdxl_checkpoint, folder if named == "folder" else folder / "adapter_model.safetensors")
    assert_scales(found, plain, LINEAR[:2], scales)


def test_a_file_of_peft_without_its_config_is_refused(sdxl_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"saved by PEFT, .* into adapter_config\.json beside it; there is none"):
        merged(sdxl_checkpoint, write_adapter(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"r": 8, "lora_alpha": 8},
            r"adapter_config\.json: states rank 8 for unet\..*, but .* have rank 4\. Take both",
        ),
        ({"peft_type": "LOHA"}, r"adapter_config\.json: an adapter of type LOHA; latentrt adds plain LoRAs"),
        ({"use_dora": True}, r"adapter_config\.json: use_dora; latentrt adds plain LoRAs\. Merge"),
        ({"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights pissa_niter_4; latentrt adds plain LoRAs"),
        ({"lora_alpha": "16"}, r"adapter_config\.json: lora_alpha must be a number, not '16'"),
        ({"alpha_pattern": {"to_q": None}}, r"alpha_pattern, to_q must be a number, not None"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern, \(: no regular expression"),
        ({"rank_pattern": [4]}, r"rank_pattern must map layers to numbers, not \[4\]"),
    ],
)
def test_configs_of_peft_that_are_refused(sdxl_checkpoint, tmp_path, config, message):
    with pytest.raises(CheckpointError, match=message):
        merged(sdxl_checkpoint, write_adapter(tmp_path / "adapter", **config))


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("[]", r"must hold a JSON object, not \[\]")])
def test_a_config_of_peft_that_cannot_be_read(sdxl_checkpoint, tmp_path, text, said):
    folder = write_adapter(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: the file {said}"):
        merged(sdxl_checkpoint, folder)


def test_the_hash_changes_with_the_config(sdxl_checkpoint, tmp_path):
    folders = [write_adapter(tmp_path / str(alpha), lora_alpha=alpha) for alpha in (4, 8)]
    assert len({Checkpoint.open(sdxl_checkpoint, loras=[LoraFile(one)]).weights_sha256() for one in folders}) == 2


@pytest.mark.parametrize("changes", [TEXTS[:1], TEXTS[1:3], TEXTS[3:5]])
def test_adapters_of_a_text_encoder(sdxl_checkpoint, plain, tmp_path, changes):
    """The file does not say which encoder; the width of its layers does."""
    folder = write_adapter(tmp_path / "adapter", changes, lora_alpha=8)
    assert_scales(merged(sdxl_checkpoint, folder), plain, changes, [2] * len(changes))


def test_a_folder_with_an_adapter_per_network(sdxl_checkpoint, plain, tmp_path):
    write_adapter(tmp_path / "lora" / "unet", LINEAR[:1], lora_alpha=8)
    write_adapter(tmp_path / "lora" / "text_encoder", TEXTS[:1], lora_alpha=2)
    found = merged(sdxl_checkpoint, tmp_path / "lora")
    assert_scales(found, plain, LINEAR[:1], [2])
    assert_scales(found, plain, TEXTS[:1], [0.5])


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "style.safetensors"])
def test_a_folder_with_one_file(sdxl_checkpoint, plain, tmp_path, name):
    write_lora(tmp_path / name, "peft", LINEAR[:1], rank=4)
    assert_scales(merged(sdxl_checkpoint, tmp_path), plain, LINEAR[:1], [1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"holds no LoRA\. Name its \.safetensors file"),
        (("a.safetensors", "b.safetensors"), r"holds a\.safetensors, b\.safetensors\. Name one of them"),
        (("adapter_model.bin",), r"adapter_model\.bin: a pickle"),
        (
            ("style/adapter_model.safetensors", "face/adapter_model.safetensors"),
            r"holds face, style\. Name one of them",
        ),
        (("adapter_model.safetensors", "pytorch_lora_weights.safetensors"), r"Name one of them"),
    ],
)
def test_folders_that_leave_a_choice(sdxl_checkpoint, tmp_path, names, message):
    folder = tmp_path / "lora"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=message):
        merged(sdxl_checkpoint, folder)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_patterns_of_the_header_with_and_without_text_model(sdxl_checkpoint, plain, tmp_path, prefix):
    changes = (TEXTS[0], TEXTS[3])
    pattern = {f"{prefix}encoder.layers.0.self_attn.{name}_proj": 12 for name in "qv"}
    header = {
        f"{folder}.{key}": value
        for folder in ("text_encoder", "text_encoder_2")
        for key, value in {"lora_alpha": 4, "alpha_pattern": pattern, "use_rslora": folder == "text_encoder"}.items()
    }
    metadata = {"lora_adapter_metadata": json.dumps(header)}
    file = write_lora(tmp_path / "a.safetensors", "peft", changes, rank=4, metadata=metadata)
    assert_scales(merged(sdxl_checkpoint, file), plain, changes, [12 / math.sqrt(4), 3])


@pytest.mark.parametrize(
    "names",
    [
        {"text_encoder_2.": "clip_g.", "text_encoder.": "clip_l."},
        {"text_encoder_2.": "text_encoders.clip_g.transformer.", "text_encoder.": "text_encoders.clip_l.transformer."},
    ],
)
def test_other_names_of_the_text_encoders(sdxl_checkpoint, plain, tmp_path, names):
    changes = (LINEAR[0], TEXTS[0], TEXTS[3])
    state = load_file(write_lora(tmp_path / "a.safetensors", "peft", changes, rank=4))
    for old, new in names.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    save_file(state, tmp_path / "b.safetensors")
    assert_scales(merged(sdxl_checkpoint, tmp_path / "b.safetensors"), plain, changes, [1, 1, 1])


def test_learned_words_in_the_file(sdxl_checkpoint, tmp_path):
    words = {"bundle_emb.me.clip_l": torch.zeros(2, 32), "bundle_emb.me.clip_g": torch.zeros(2, 48)}
    file = write_lora(tmp_path / "a.safetensors", "kohya", LINEAR[:1], alpha=3.0, **words)
    with pytest.raises(CheckpointError, match=r"also holds the learned words me \(textual inversion, .* Save the LoRA"):
        merged(sdxl_checkpoint, file)
