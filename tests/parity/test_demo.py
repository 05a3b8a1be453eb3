"""The checkpoint that ships draws what it is told, through latentrt; and planted faults show in the scores."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentrt.demo import CHECKPOINT
from latentrt.demo.evaluate import evaluate, held_out_scenes, latentrt_draw, shares
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.exporter import export_bundle
from latentrt.runtime import MicroConditioning, Pipeline, Request
from latentrt.runtime.drawing.guidance import guidance_rows
from latentrt.runtime.text.conditioning import Conditioning
from latentrt.runtime.text.encoder import PromptEncoder

SCENES = held_out_scenes(20)
STEPS = 12


def scores(pipeline: Pipeline) -> dict[str, float]:
    marks, _ = evaluate(latentrt_draw(pipeline, steps=STEPS), SCENES)
    return shares(marks)


def test_held_out_captions_are_followed(demo_pipeline: Pipeline) -> None:
    right = scores(demo_pipeline)
    assert min(right["background"], right["colour"], right["shape"], right["place"]) >= 0.8, right


def test_ignored_prompts_would_show(demo_pipeline: Pipeline) -> None:
    marks, _ = evaluate(
        lambda captions, seeds: latentrt_draw(demo_pipeline, steps=STEPS)([""] * len(captions), seeds), SCENES
    )
    assert shares(marks)["background"] <= 0.5


def test_swapped_encoders_would_show(demo_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = PromptEncoder.encode

    def swapped(self: PromptEncoder, request: Request, tokens: int) -> Callable[[], Conditioning]:
        begun, first = encode(self, request, tokens), self.model.text_encoders[0].width

        def conditioning() -> Conditioning:
            inputs = begun()
            return {**inputs, "encoder_hidden_states": np.roll(inputs["encoder_hidden_states"], -first, -1)}

        return conditioning

    monkeypatch.setattr(PromptEncoder, "encode", swapped)
    right = scores(demo_pipeline)
    assert min(right["colour"], right["shape"]) <= 0.5, right


def test_inverted_guidance_would_show(demo_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def inverted(*arguments: Any) -> np.ndarray:
        return guidance_rows(*arguments)[:, ::-1]

    monkeypatch.setattr("latentrt.runtime.drawing.start.guidance_rows", inverted)
    assert scores(demo_pipeline)["background"] <= 0.5


def shift_by_crop(pipeline: Pipeline) -> np.ndarray:
    """How far the shape moves down and right, in pixels, when the crop goes from (0, 0) to (20, 20)."""
    prompt = "a large black circle in the centre, on a yellow background"

    def centre(crop: tuple[int, int]) -> np.ndarray:
        pixels = np.asarray(pipeline.generate(prompt, seed=3, steps=STEPS, crop=crop).images[0])
        return np.argwhere(pixels.max(-1) < 100).mean(0)

    return centre((20, 20)) - centre((0, 0))


def test_the_crop_moves_the_content_up_and_left(demo_pipeline: Pipeline) -> None:
    assert shift_by_crop(demo_pipeline).max() < -6


def test_dropped_time_ids_would_show(demo_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    time_ids = MicroConditioning.time_ids
    monkeypatch.setattr(MicroConditioning, "time_ids", lambda self, *size: time_ids(MicroConditioning(), *size))
    assert np.abs(shift_by_crop(demo_pipeline)).max() < 1


def test_files_are_few_enough_for_a_repository() -> None:
    files = [path for path in Path(CHECKPOINT).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16_000_000
    assert json.loads((CHECKPOINT / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("demo") / "fp16"
    bundle = export_bundle(Checkpoint.open(CHECKPOINT), folder, precision="fp16", depth="off")
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        yield pipe


def compare_with_fp16(pipeline: Pipeline, half: Pipeline, count: int, steps: int) -> tuple[float, float]:
    """The largest difference of a score, in points, and the smallest peak signal-to-noise ratio, in decibels."""
    scenes = held_out_scenes(count)
    (wanted, right), (found, drawn) = (evaluate(latentrt_draw(one, steps=steps), scenes) for one in (pipeline, half))
    before, after = shares(wanted), shares(found)
    errors = [np.square(one.astype(float) - other).mean() for one, other in zip(right, drawn, strict=True)]
    return 100 * max(abs(after[name] - before[name]) for name in before), 10 * np.log10(255**2 / max(errors))


@pytest.mark.slow
def test_fp16_draws_the_same_pictures(demo_pipeline: Pipeline, half: Pipeline) -> None:
    components = half.bundle.manifest.components.values()
    assert {part.precision for part in components} == {"fp16"}
    assert not any(part.numerics.islands for part in components if part.numerics)
    points, decibels = compare_with_fp16(demo_pipeline, half, 4, STEPS)
    assert points == 0
    assert decibels >= 40


@pytest.mark.slow
def test_fp16_scores_as_fp32_does_over_all_captions(demo_pipeline: Pipeline, half: Pipeline) -> None:
    points, decibels = compare_with_fp16(demo_pipeline, half, 200, 20)
    assert points <= 1
    assert decibels >= 40
