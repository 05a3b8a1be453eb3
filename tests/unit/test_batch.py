"""Several pictures as the arrays of one batch, and which rows the U-Net computes for them."""

import numpy as np
import pytest

from latentrt.runtime.drawing.batch import check_table, lay_out
from latentrt.runtime.drawing.inpainting import Original
from latentrt.runtime.drawing.picture import Picture
from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler

CONFIG = ScheduleConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def picture(number: int, guidance: list[list[float]], **more: object) -> Picture:
    """A picture whose every number is its own; its rows are the numbers 10n, 10n + 1."""
    table = compile_sampler("euler", CONFIG, len(guidance))
    rows = len(guidance[0])
    return Picture(
        inputs={"encoder_hidden_states": np.stack([np.full((77, 2), 10 * number + row) for row in range(rows)])},
        guidance=np.array(guidance, np.float32),
        table=table,
        noise=np.zeros((1, 4, 2, 3), np.float32),
        state=np.full((table.state_count, 4, 2, 3), number, np.float32),
        **more,  # type: ignore[arg-type]
    )


def test_negative_rows_come_first_and_pictures_without_have_one() -> None:
    pictures = [picture(1, [[-2, 3]] * 3), picture(2, [[1]] * 3), picture(3, [[0, 1], [-4, 5], [0, 1]])]
    sizes, arrays = lay_out(pictures)
    assert (sizes["images"], sizes["rows"]) == (3, 4)
    assert arrays["encoder_hidden_states"][:, 0, 0].tolist() == [10, 11, 20, 31]
    assert arrays["row_image"].tolist() == [0, 0, 1, 2]
    assert arrays["text_row"].tolist() == [1, 2, 3]
    assert arrays["guidance"].tolist() == [[-2, 3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert arrays["sample"].shape == (4, 4, 2, 3)
    pictures[2].step = 1  # its guidance begins
    sizes, arrays = lay_out(pictures)
    assert sizes["rows"] == 5
    assert arrays["encoder_hidden_states"][:, 0, 0].tolist() == [10, 30, 11, 20, 31]
    assert arrays["guidance"].tolist() == [[-2, 0, 3, 0, 0], [0, 0, 0, 1, 0], [0, -4, 0, 0, 5]]
    assert arrays["step"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("guidance", "step", "steady"),
    [([[0, 1]] * 4, 0, 4), ([[0, 1]] * 4, 3, 1), ([[0, 1], [0, 1], [-1, 2], [0, 1]], 0, 2), ([[0, 1], [-1, 2]], 1, 1)],
)
def test_steady_steps_end_where_the_guidance_changes(guidance: list[list[float]], step: int, steady: int) -> None:
    assert picture(1, guidance, step=step).steady_steps == steady


def test_pictures_without_a_mask_are_drawn_everywhere() -> None:
    mask = np.zeros((1, 2, 3), np.float32)
    levels = np.ones((3, 2))
    kept = Original(np.full((4, 2, 3), 7, np.float32), np.full((4, 2, 3), 8, np.float32), mask, levels)
    _, arrays = lay_out([picture(1, [[1]] * 2, original=kept), picture(2, [[1]] * 2)])
    np.testing.assert_array_equal(arrays["mask"], np.stack([mask, np.ones_like(mask)]))
    assert arrays["original"][:, 0, 0, 0].tolist() == [7, 0]
    assert arrays["original_noise"][:, 0, 0, 0].tolist() == [8, 0]
    np.testing.assert_array_equal(arrays["levels"][0, :3], levels)
    assert not arrays["levels"][1].any()


def test_an_inpainting_network_reads_its_extra_channels_behind_the_latents() -> None:
    extra = np.full((5, 2, 3), 9, np.float32)
    _, arrays = lay_out([picture(1, [[-1, 2]], extra=extra)])
    assert arrays["sample"].shape == (2, 9, 2, 3)
    np.testing.assert_array_equal(arrays["sample"][:, 4:], np.stack([extra] * 2))
    np.testing.assert_array_equal(arrays["extra"], extra[None])


@pytest.mark.parametrize(
    ("sampler", "steps", "message"),
    [
        ("heun", 900, "heun: 1799 evaluations of the U-Net; at most 1000 are served. Ask for fewer steps"),
        (
            "euler_a",
            600,
            "euler_a: draws noise on 600 steps; at most 256 such steps are served. Ask for fewer steps, or",
        ),
    ],
)
def test_tables_that_are_too_long(sampler: str, steps: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_table(compile_sampler(sampler, CONFIG, steps))
