"""The checkpoint that ships draws what it is told, through latentrt; and planted faults show in the scores."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latentrt.demo import CHECKPOINT
from latentrt.demo.evaluate import evaluate, held_out_scenes, latentrt_draw, shares
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.exporter import export_bundle
from latentrt.runtime import MicroConditioning, Pipeline, Request
from latentrt.runtime.drawing import guidance_rows
from latentrt.runtime.prompt import Conditioning, PromptEncoder

SCENES = held_out_scenes(20)
STEPS = 12


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    bundle = export_bundle(Checkpoint.open(CHECKPOINT), folder, precision="fp32", depth="quick")
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        yield pipe


def scores(pipeline: Pipeline) -> dict[str, float]:
    marks, _ = evaluate(latentrt_draw(pipeline, steps=STEPS), SCENES)
    return shares(marks)


def test_held_out_captions_are_followed(pipeline: Pipeline) -> None:
    right = scores(pipeline)
    assert min(right["background"], right["colour"], right["shape"], right["place"]) >= 0.8, right


def test_ignored_prompts_would_show(pipeline: Pipeline) -> None:
    marks, _ = evaluate(
        lambda captions, seeds: latentrt_draw(pipeline, steps=STEPS)([""] * len(captions), seeds), SCENES
    )
    assert shares(marks)["background"] <= 0.5


def test_swapped_encoders_would_show(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = PromptEncoder.encode

    def swapped(self: PromptEncoder, request: Request, tokens: int) -> Conditioning:
        inputs = encode(self, request, tokens).inputs
        first = self.model.text_encoders[0].width
        return Conditioning({**inputs, "encoder_hidden_states": np.roll(inputs["encoder_hidden_states"], -first, -1)})

    monkeypatch.setattr(PromptEncoder, "encode", swapped)
    right = scores(pipeline)
    assert min(right["colour"], right["shape"]) <= 0.5, right


def test_inverted_guidance_would_show(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def inverted(scale: float, guided: bool) -> np.ndarray:
        return guidance_rows(1 - scale, guided)

    monkeypatch.setattr("latentrt.runtime.drawing.guidance_rows", inverted)
    assert scores(pipeline)["background"] <= 0.5


def shift_by_crop(pipeline: Pipeline) -> np.ndarray:
    """How far the shape moves down and right, in pixels, when the crop goes from (0, 0) to (20, 20)."""
    prompt = "a large black circle in the centre, on a yellow background"

    def centre(crop: tuple[int, int]) -> np.ndarray:
        pixels = np.asarray(pipeline.generate(prompt, seed=3, steps=STEPS, crop=crop).images[0])
        return np.argwhere(pixels.max(-1) < 100).mean(0)

    return centre((20, 20)) - centre((0, 0))


def test_the_crop_moves_the_content_up_and_left(pipeline: Pipeline) -> None:
    assert shift_by_crop(pipeline).max() < -6


def test_dropped_time_ids_would_show(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    time_ids = MicroConditioning.time_ids
    monkeypatch.setattr(MicroConditioning, "time_ids", lambda self, *size: time_ids(MicroConditioning(), *size))
    assert np.abs(shift_by_crop(pipeline)).max() < 1


def test_files_are_few_enough_for_a_repository() -> None:
    files = [path for path in Path(CHECKPOINT).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16_000_000
    assert json.loads((CHECKPOINT / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
