"""LoRAs as data: rows of one batch with different LoRAs draw what diffusers draws with these in its weights."""

import copy
import hashlib
import pickle
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from loras import CONVOLUTIONS, LAYERS, LINEAR, TEXTS, Change, write_lora

from latentrt.engine.build import build_engines
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.sources.lora import LoraFile
from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.lora_slots import LoraSlots
from latentrt.runtime.errors import BundleError, CheckpointError, RequestError
from latentrt.runtime.record import webui
from latentrt.serve.worker import WorkerConfig, load_pipeline

ROOM = LoraSlots(rank=16, layers="all")
SETTINGS = {"steps": 3, "width": 64, "height": 64, "seed": 5, "guidance": 4.0, "sampler": "euler"}
PROMPT = "a red circle"
MIXES = [
    {},
    {"wide": 0.5},
    {"wide": 0.25, "convolutions": 0.5},
    {"text": {"text_encoder": 0.8, "text_encoder_2": 0.4}, "wide": -0.5},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    wide = write_lora(folder / "wide.safetensors", "kohya original", (*LAYERS, *TEXTS), rank=4, alpha=2.0, seed=1)
    convolutions = write_lora(folder / "convolutions.safetensors", "kohya", (*CONVOLUTIONS, *LINEAR), rank=3, seed=40)
    text = write_lora(folder / "text.safetensors", "peft", TEXTS, rank=2, seed=80, dtype=torch.bfloat16)
    return {file.stem: file for file in (wide, convolutions, text)}


@pytest.fixture(scope="module")
def bundle(sdxl_bundle, tmp_path_factory):
    """The tiny bundle with a plain build, one with room in every layer, and one with some in attention."""
    folder = shutil.copytree(sdxl_bundle, tmp_path_factory.mktemp("room") / "bundle")
    for room in (None, ROOM, LoraSlots(rank=4)):
        build_engines(Bundle.open(folder), "onnxruntime", lora=room)
    return folder


@pytest.fixture
def pipe(bundle, files):
    with Pipeline.load(bundle, "onnxruntime", "cpu", lora_rank=8) as pipeline:
        for file in files.values():
            pipeline.load_lora(file)
        yield pipeline


def by_diffusers(checkpoint, files, mix, prompt=PROMPT):
    """The picture of diffusers' pipeline whose weights hold the LoRAs."""
    peer = StableDiffusionXLPipeline.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    peer.set_progress_bar_config(disable=True)
    for network in ("unet", "text_encoder", "text_encoder_2"):
        weights = {name: one.get(network, 0) if isinstance(one, dict) else one for name, one in mix.items()}
        loras = [LoraFile(files[name], weight) for name, weight in weights.items()]
        setattr(peer, network, Checkpoint.open(checkpoint, loras=loras).network(network, torch.float32))
    generator = torch.Generator().manual_seed(SETTINGS["seed"])
    result = peer(
        prompt, num_inference_steps=3, width=64, height=64, guidance_scale=4.0, generator=generator, output_type="np"
    )
    return np.round(result.images[0] * 255)


def difference(one, other):
    return np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max()


def test_rows_of_one_batch_have_different_loras(pipe, sdxl_checkpoint, files):
    """At most 2/255 from diffusers, for each of the mixes of one batch; without LoRAs the bits of a plain build's."""
    result = pipe.generate([PROMPT] * len(MIXES), loras=MIXES, **SETTINGS | {"seed": [SETTINGS["seed"]] * len(MIXES)})
    pictures = [by_diffusers(sdxl_checkpoint, files, mix) for mix in MIXES]
    for picture, image in zip(pictures, result.images, strict=True):
        assert difference(picture, image) <= 2
    for number, picture in enumerate(pictures[1:], 1):
        assert difference(picture, pictures[0]) > 20, MIXES[number]


def test_the_metadata_name_what_was_used(pipe, files):
    result = pipe.generate(PROMPT, loras={"wide": 0.5, "text": {"unet": 0.0, "text_encoder": 1}}, **SETTINGS)
    assert result.metadata is not None
    stored = result.metadata
    assert stored.settings["loras"] == {"wide": 0.5, "text": {"unet": 0.0, "text_encoder": 1.0}}
    data = files["wide"].read_bytes()
    header = int.from_bytes(data[:8], "little")
    hashes = {note.name: note.short_hash for note in stored.loras}
    assert hashes["wide"] == hashlib.sha256(data[8 + header :]).hexdigest()[:12]
    assert hashes.keys() == {"wide", "text"}
    assert f'Lora hashes: "wide: {hashes["wide"]}, text: {hashes["text"]}"' in webui.write(stored)
    assert pipe.generate(PROMPT, **stored.given_settings()).images[0].tobytes() == result.images[0].tobytes()


def test_switching_leaves_no_trace(pipe):
    """A, B, A, none, over and over: the bits of each are the same every time."""
    first = {}
    for _ in range(5):
        for name in ("wide", "text", "convolutions", ""):
            latents = pipe.generate(PROMPT, decode=False, loras={name: 0.5} if name else None, **SETTINGS).latents
            assert np.array_equal(first.setdefault(name, latents), latents)
    assert len({latents.tobytes() for latents in first.values()}) == 4


def test_loading_disturbs_nothing_and_room_is_given_back(pipe, files, tmp_path):
    wanted = pipe.generate(PROMPT, decode=False, loras={"wide": 0.5}, **SETTINGS).latents
    pipe.unload_lora("text")
    drawing = pipe.begin(pipe.request(PROMPT, decode=False, loras={"wide": 0.5}, **SETTINGS))
    pipe.advance([drawing])
    other = write_lora(tmp_path / "other.safetensors", "peft", LINEAR, rank=9, seed=3)
    pipe.load_lora(other)
    pipe.advance([drawing], 2)
    assert np.array_equal(pipe.finish(drawing).latents, wanted)
    assert {name: lora.rank for name, lora in pipe.loras.items()} == {"convolutions": 3, "wide": 4, "other": 9}
    with pytest.raises(RequestError, match=r"only 0 of 16 are free; loaded are convolutions \(3\), wide \(4\), other"):
        pipe.load_lora(files["text"])
    assert pipe.load_lora(files["text"], "words", evict=True) == "words"
    assert list(pipe.loras) == ["wide", "other", "words"], "the one that was not used for longest has gone"
    pipe.unload_lora("other")
    plain = pipe.generate(PROMPT, decode=False, loras={"wide": 0.5}, **SETTINGS).latents
    assert np.array_equal(plain, wanted)


def test_a_drawing_takes_its_loras_along(pipe, bundle, files):
    wanted = pipe.generate(PROMPT, decode=False, loras={"wide": 0.5, "text": 1.0}, **SETTINGS).latents
    drawing = pipe.begin(pipe.request(PROMPT, decode=False, loras={"wide": 0.5, "text": 1.0}, **SETTINGS))
    pipe.advance([drawing])
    travelled = pickle.loads(pickle.dumps(drawing))
    pipe.unload_lora("wide")
    with pytest.raises(RequestError, match=r"^this drawing uses a LoRA \(SHA-256 \w{12}…\) that is not loaded in this"):
        pipe.advance([drawing])
    pipe.load_lora(files["wide"], "the same under another name")
    pipe.advance([drawing], 2)
    assert np.array_equal(pipe.finish(drawing).latents, wanted)
    with Pipeline.load(bundle, "onnxruntime", "cpu", lora_rank=8) as second:
        with pytest.raises(RequestError, match=r"not loaded in this pipeline"):
            second.advance([copy.copy(travelled)])
        second.load_lora(files["text"])
        second.load_lora(files["wide"])  # in other columns than in the first pipeline
        second.advance([travelled], 2)
        assert difference(second.finish(travelled).latents, wanted) < 1e-3


def test_a_plain_build_is_preferred_and_drawings_without_loras_move_freely(pipe, bundle, files):
    with Pipeline.load(bundle, "onnxruntime", "cpu") as plain:
        assert "-lora" not in plain.selection.build
        with pytest.raises(
            RequestError, match=r"this build has no room for LoRAs. Build it with some: .*--lora-rank 64"
        ):
            plain.load_lora(files["wide"])
        with pytest.raises(RequestError, match="this build has no room for LoRAs"):
            plain.generate(PROMPT, loras={"wide": 1}, **SETTINGS)
        drawing = pipe.begin(pipe.request(PROMPT, decode=False, **SETTINGS))
        pipe.advance([drawing])
        plain.advance([drawing])
        pipe.advance([drawing])
        wanted = plain.generate(PROMPT, decode=False, **SETTINGS).latents
        assert difference(pipe.finish(drawing).latents, wanted) < 1e-3


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ({"nobody": 1}, "loras: 'nobody' is not loaded; loaded are wide, convolutions, text. Load it: load_lora"),
        ({"wide": float("nan")}, "loras, wide: strength nan: must be a finite number, such as 0.8"),
        ({"wide": {"vae": 1}}, "loras, wide: vae is no network; they are unet, text_encoder, text_encoder_2"),
        ({3: 1}, "loras: 3 is no name of a LoRA"),
        ("wide", "loras 'wide': must be a dict of strengths by name"),
        ([{}, {}, {}], "loras: 3 given for 1 prompts; give one, or one per prompt"),
    ],
)
def test_what_no_request_can_say(pipe, loras, message):
    with pytest.raises(RequestError) as caught:
        pipe.generate(PROMPT, loras=loras, **SETTINGS)
    assert str(caught.value).startswith(message)


def test_files_that_do_not_go_in(pipe, bundle, files, tmp_path):
    before = pipe.loras
    large = write_lora(tmp_path / "large.safetensors", "peft", LINEAR, rank=17)
    with pytest.raises(
        RequestError, match=r"its rank is 17, this build has room for 16 in all. Build with --lora-rank 17"
    ):
        pipe.load_lora(large)
    with pytest.raises(RequestError, match="LoRA 'wide': another file has this name"):
        pipe.load_lora(files["text"], "wide")
    foreign = (Change("unet", LINEAR[1].layer, (32, 24)),)
    with pytest.raises(CheckpointError, match="made for a model"):
        pipe.load_lora(write_lora(tmp_path / "foreign.safetensors", "peft", foreign))
    broken = write_lora(tmp_path / "broken.safetensors", "peft", LINEAR[:1], rank=2)
    data = bytearray(broken.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    broken.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"broken.safetensors: unet.*lora_\w.weight: NaN or infinity"):
        pipe.load_lora(broken)
    with pytest.raises(RequestError, match="LoRA 'nobody': not loaded; loaded are wide, convolutions, text"):
        pipe.unload_lora("nobody")
    assert pipe.loras == before
    assert pipe.load_lora(files["wide"]) == "wide", "the same again changes nothing"
    with (
        Pipeline.load(bundle, "onnxruntime", "cpu", build=_attention_build(bundle)) as attention,
        pytest.raises(CheckpointError, match=r"7 of its 11 layers have no room in this build, .*--lora-layers all"),
    ):
        attention.load_lora(files["convolutions"])
    with pytest.raises(BundleError, match=r"no build for this machine has room for LoRAs of rank 17; .*--lora-rank 17"):
        Pipeline.load(bundle, "onnxruntime", "cpu", lora_rank=17)


def _attention_build(bundle):
    return next(name for name in Bundle.open(bundle).builds() if name.endswith("-lora4"))


def test_a_servers_pipelines_have_them(bundle, files, pipe):
    loras = tuple(files.values())
    with load_pipeline(bundle, WorkerConfig({}, "onnxruntime", "cpu", loras=loras)) as served:
        assert set(served.loras) == set(files)
        drawn = served.generate(PROMPT, decode=False, loras={"wide": 0.5}, **SETTINGS).latents
    assert np.array_equal(drawn, pipe.generate(PROMPT, decode=False, loras={"wide": 0.5}, **SETTINGS).latents)
    with pytest.raises(CheckpointError):
        load_pipeline(bundle, WorkerConfig({}, "onnxruntime", "cpu", loras=(loras[0].with_name("none.safetensors"),)))
