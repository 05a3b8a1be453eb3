"""Parts of the training that a wrong picture would not show at once."""

from pathlib import Path
from random import Random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from latentrt.demo.conditioning import Conditioner, draw_captions, time_ids  # noqa: E402
from latentrt.demo.networks import build  # noqa: E402
from latentrt.demo.pool import bucket_counts, numbered_scene  # noqa: E402
from latentrt.demo.scenes import BUCKETS  # noqa: E402
from latentrt.demo.tokens import VOCAB_SIZE, write_tokenizers  # noqa: E402
from latentrt.demo.train_unet import alphas_cumprod, loss_weight  # noqa: E402


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    return folder


def test_any_text_is_tokenised_and_the_pads_differ(tokenizers: Path) -> None:
    conditioner = Conditioner(tokenizers, ())
    first, second = conditioner.tokenizers
    text = "A small RED circle; Zürich 東京 №7"
    assert first(text).input_ids == second(text).input_ids
    assert first(text).input_ids[-1] == VOCAB_SIZE - 1
    assert "circle" in first.decode(first(text).input_ids)
    pads = [tokenizer("", padding="max_length", max_length=77).input_ids[-1] for tokenizer in (first, second)]
    assert pads == [VOCAB_SIZE - 1, 0]


def test_words_of_the_captions_are_single_tokens(tokenizers: Path) -> None:
    tokenizer = Conditioner(tokenizers, ()).tokenizers[0]
    caption = "a small purple triangle at the top, on a white background"
    assert len(tokenizer.tokenize(caption)) == len(caption.replace(",", " ,").split())


def test_training_again_gives_the_same_tokenizers(tokenizers: Path, tmp_path: Path) -> None:
    write_tokenizers(tmp_path)
    for name in ("tokenizer/vocab.json", "tokenizer_2/merges.txt"):
        assert (tmp_path / name).read_bytes() == (tokenizers / name).read_bytes()


def test_zeroed_captions_are_zeros_and_empty_ones_are_not(tokenizers: Path) -> None:
    conditioner = Conditioner(tokenizers, [build("text_encoder"), build("text_encoder_2")])
    hidden, pooled = conditioner(["", ""], [True, False])
    assert hidden.shape == (2, 77, 64 + 96)
    assert pooled.shape == (2, 96)
    assert not hidden[0].any()
    assert not pooled[0].any()
    assert hidden[1].std() > 0.1


def test_a_tenth_of_the_captions_is_empty_and_half_of_those_zeroed() -> None:
    scenes = [numbered_scene(number, (96, 96))[0] for number in range(2000)]
    captions, zeroed = draw_captions(scenes, Random(0))
    assert captions.count("") == pytest.approx(200, abs=45)
    assert sum(zeroed) == pytest.approx(captions.count("") / 2, abs=30)
    assert not any(caption for caption, zero in zip(captions, zeroed, strict=True) if zero)


def test_pool_numbers_give_the_same_scene_each_time() -> None:
    assert sum(bucket_counts(1000).values()) == 1000
    for size in BUCKETS:
        assert numbered_scene(7, size) == numbered_scene(7, size)
        assert numbered_scene(7, size)[1].size == size
    assert numbered_scene(7, (96, 96)) != numbered_scene(8, (96, 96))


def test_schedule_is_stable_diffusions() -> None:
    alphas = alphas_cumprod()
    assert alphas[0] == pytest.approx(1 - 0.00085)
    assert alphas[-1] == pytest.approx(0.0047, abs=1e-4)


def test_loss_weight_falls_with_snr() -> None:
    weights = loss_weight(torch.tensor([0.01, 0.25, 1.0, 5.0, 50.0]), 5.0)
    assert weights.tolist() == pytest.approx([10.0, 2.0, 1.0, 1.0, 0.1])


def test_time_ids_are_one_row_per_picture() -> None:
    views = [numbered_scene(number, (80, 112))[1] for number in range(3)]
    assert time_ids(views).shape == (3, 6)
    assert time_ids(views)[:, 4:].tolist() == [[80.0, 112.0]] * 3
