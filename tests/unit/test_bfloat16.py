"""bfloat16 in buffers, bit by bit against torch's conversion."""

import numpy as np
import pytest
import torch
from cuda_stand_in import StandInCuda

from latentrt.runtime.backends import cuda, cuda_memory
from latentrt.runtime.backends.bfloat16 import from_bits, to_bits
from latentrt.runtime.backends.host import HostBuffer

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1.00390625, 1.01171875, 3.3895e38, 3.4e38, np.inf, -np.inf, np.nan, 1e-40, -65504.0]
"""Among them two ties (to the even neighbour below and above), one that rounds to infinity, a subnormal."""


def test_rounding_is_torchs() -> None:
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([np.array(SPECIAL, np.float32), random])
    wanted = torch.from_numpy(values).bfloat16()
    found = from_bits(to_bits(values))
    assert np.array_equal(np.isnan(found), np.isnan(values))
    numbers = ~np.isnan(values)
    assert np.array_equal(to_bits(values)[numbers], wanted.view(torch.uint16).numpy()[numbers])
    assert np.array_equal(found[numbers], wanted.float().numpy()[numbers])


@pytest.mark.parametrize("bits", [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_nan_stays_one_with_its_sign(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    found = to_bits(value)
    assert np.isnan(from_bits(found)).all()
    assert found[0] >> 15 == bits >> 31


def test_every_bfloat16_survives_the_way_there_and_back() -> None:
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    numbers = ~np.isnan(from_bits(bits))
    assert np.array_equal(to_bits(from_bits(bits))[numbers], bits[numbers])


@pytest.fixture
def device_buffer(gpu: StandInCuda) -> cuda_memory.DeviceBuffer:
    return cuda_memory.DeviceBuffer((2, 3), "uint16", cuda.Stream(0))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("place", ["host", "device"])
def test_buffers_take_and_give_numbers(place: str, dtype: str, device_buffer: cuda_memory.DeviceBuffer) -> None:
    buffer = device_buffer if place == "device" else HostBuffer((2, 3), np.dtype("uint16"))
    values = np.array([[1.0, 1.00390625, -2.5], [np.inf, 0.1, np.nan]]).astype(dtype)
    buffer.write(values)
    found = buffer.numpy()
    assert found.dtype == np.float32
    wanted = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(found, wanted)
    buffer.write(to_bits(values))
    np.testing.assert_array_equal(buffer.numpy(), wanted)


def test_a_host_buffer_repeats_what_is_broadcast() -> None:
    buffer = HostBuffer((2, 3), np.dtype("uint16"))
    buffer.write(np.broadcast_to(np.float32([1, 2, 3]), (2, 3)))
    assert buffer.numpy().tolist() == [[1, 2, 3], [1, 2, 3]]
