"""Prompts in AUTOMATIC1111's syntax through the whole pipeline: what each part of the grammar draws, by other means."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from latentrt.demo import CHECKPOINT
from latentrt.runtime import Pipeline
from latentrt.runtime.errors import RequestError
from latentrt.runtime.text.token_rows import token_rows

SETTINGS = {"steps": 6, "seed": 7, "guidance": 4.0, "sampler": "euler", "prompt_syntax": "a1111", "decode": False}
ROUNDING = 5e-6
"""Rows of a batch are summed in another order than alone."""


def latents(pipe: Pipeline, prompt: str | list[str], **settings: object) -> np.ndarray:
    return pipe.generate(prompt, **{**SETTINGS, **settings}).latents  # type: ignore[arg-type]


def test_a_prompt_that_changes_is_two_requests(demo_pipeline: Pipeline) -> None:
    """Two steps of six with the first text, down to timestep 600, handed over to four with the second one."""
    changed = latents(demo_pipeline, "a [red circle:green star:1]", negative="[dull::1]")
    half = latents(demo_pipeline, "a red circle", negative="dull", denoising_end=0.4)
    rest = latents(demo_pipeline, "a green star", negative="", latents=half, denoising_start=0.4)
    np.testing.assert_allclose(changed, rest, atol=ROUNDING)
    assert np.abs(changed - latents(demo_pipeline, "a red circle", negative="dull")).max() > 0.1


def test_prompts_that_alternate_take_turns(demo_pipeline: Pipeline) -> None:
    drawing = demo_pipeline.begin(demo_pipeline.request("a [red|green] circle", **SETTINGS))
    (picture,) = drawing.pictures
    rows = [found.tolist() for found in map(np.flatnonzero, picture.guidance)]
    assert rows == [[0, 1], [0, 1], [0, 2], [0, 1], [0, 2], [0, 1]]
    assert picture.steady_steps == 2
    texts = [demo_pipeline.embed(f"a {colour} circle", prompt_syntax="a1111").hidden[0] for colour in ("red", "green")]
    np.testing.assert_array_equal(picture.inputs["encoder_hidden_states"][1:], texts)


def test_and_adds_differences_from_the_negative_prompt(demo_pipeline: Pipeline) -> None:
    """One Euler step is linear in the model's output, so latents of single prompts add up as the outputs do."""
    one = {"steps": 1, "negative": "a blue star"}
    both = latents(demo_pipeline, "a red circle AND a green star :0.5", **one)
    first = latents(demo_pipeline, "a red circle", **one)
    second = latents(demo_pipeline, "a green star", **one | {"guidance": 2.0})
    negative = latents(demo_pipeline, "a blue star", steps=1, guidance=1.0)
    np.testing.assert_allclose(both, first + second - negative, atol=ROUNDING)
    assert np.abs(both - first).max() > 0.01


def test_and_of_one_text_in_halves_is_that_text(demo_pipeline: Pipeline) -> None:
    halves = latents(demo_pipeline, "a red circle :0.5 AND a red circle :0.5")
    np.testing.assert_allclose(halves, latents(demo_pipeline, "a red circle"), atol=1e-4)


def test_each_prompt_of_a_batch_is_drawn_as_alone(demo_pipeline: Pipeline) -> None:
    prompts = ["a red circle AND a star", "[a green circle:a blue star:3]"]
    batch = latents(demo_pipeline, prompts, seed=[1, 2])
    for number, prompt in enumerate(prompts):
        np.testing.assert_allclose(batch[number], latents(demo_pipeline, prompt, seed=1 + number)[0], atol=1e-4)


def test_more_rows_than_a_build_serves(demo_pipeline: Pipeline) -> None:
    with pytest.raises(RequestError, match="make 9 rows of the U-Net at once; this build serves 8"):
        latents(demo_pipeline, " AND ".join("abcdefgh"))
    drawings = [demo_pipeline.begin(demo_pipeline.request("a AND b AND c AND d", **SETTINGS)) for _ in range(2)]
    with pytest.raises(RequestError, match="make 10 rows of the U-Net at once"):
        demo_pipeline.advance(drawings)


def test_embeddings_hold_one_text_per_prompt(demo_pipeline: Pipeline) -> None:
    for prompt in ("a AND b", "[a:b:1]", "a :2"):
        with pytest.raises(RequestError, match="embeddings hold one text per prompt"):
            demo_pipeline.embed(prompt, prompt_syntax="a1111")


def test_emphasis_multiplies_what_the_encoders_give(demo_pipeline: Pipeline) -> None:
    """Hidden states of transformers' encoders times the weights, each encoder's brought back to its mean."""
    peer = StableDiffusionXLPipeline.from_pretrained(CHECKPOINT, dtype=torch.float32, local_files_only=True)
    prompt, plain = "a (red) [circle], (blue:1.4)", "a red circle, blue"
    found = demo_pipeline.embed(prompt, prompt_syntax="a1111")
    with torch.no_grad():
        hidden, _, pooled, _ = peer.encode_prompt(plain, do_classifier_free_guidance=False)
    rows = [token_rows(tokenizer, prompt, "a1111") for tokenizer in demo_pipeline._work.prompts.tokenizers.values()]
    widths = [encoder.width for encoder in demo_pipeline.bundle.manifest.model.text_encoders]
    parts = np.split(hidden.numpy(), np.cumsum(widths)[:-1], axis=-1)
    expected = []
    for part, (_, weights) in zip(parts, rows, strict=True):
        scaled = part * weights[..., None]
        expected.append(scaled * part.mean() / scaled.mean())
    np.testing.assert_allclose(found.hidden, np.concatenate(expected, axis=-1), atol=2e-4)
    np.testing.assert_allclose(found.pooled, pooled.numpy(), atol=1e-4)
    assert np.abs(found.hidden - hidden.numpy()).max() > 0.01
