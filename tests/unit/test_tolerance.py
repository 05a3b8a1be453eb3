"""The measure of the difference between an export's numbers and torch's."""

import numpy as np
import pytest
import torch

from latentrt.export.tolerance import relative_error


def test_one_array() -> None:
    reference = np.array([3.0, 4.0])  # root mean square 5 / sqrt(2)
    assert relative_error(reference, reference) == 0.0
    assert relative_error(reference + np.array([0.0, 0.5]), reference) == pytest.approx(0.1)
    assert relative_error(1.2 * reference, reference) == pytest.approx(0.2)
    assert relative_error(torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]])) == pytest.approx(0.1)


def test_several_arrays_count_as_one() -> None:
    reference = [np.array([3.0]), torch.tensor([[4.0]])]
    assert relative_error([np.array([3.0]), torch.tensor([[4.5]])], reference) == pytest.approx(0.1)


def test_half_precision_is_compared_in_full() -> None:
    values = np.full(100_000, 200.0, np.float16)  # whose squares are beyond fp16
    assert relative_error(values, values.astype(np.float32) * 2) == pytest.approx(0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_no_small_error(value: float) -> None:
    assert not relative_error(np.array([1.0, value]), np.array([1.0, 2.0])) < 1e9
