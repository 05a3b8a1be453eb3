"""Program: several threads draw pictures of alternating sizes with one pipeline on the fake device.

Arguments: the bundle, then how many requests are warm. The parts are "cold", and after it "warm <n>" for every 25 of
these.
"""

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from fake_cuda import bindings

THREADS = 4
SIZES = ((96, 96), (96, 128), (128, 96), (64, 64), (128, 128))
COLD = 6 * len(SIZES)
"""Requests until every size is captured: a capture follows a run that takes no memory."""

STEPS = 3
PER_PART = 25


def main(bundle: str, requests: int) -> None:
    """Draw the cold requests, then the warm ones."""
    bindings.install()
    from latentrt.runtime import Pipeline, pipeline_work

    pipeline_work.check_finite = lambda *_: None  # the sampler writes whether a picture failed, and it did nothing
    bindings.mark("load")
    with Pipeline.load(bundle, "onnxruntime", "cuda:0") as pipe, ThreadPoolExecutor(THREADS) as threads:

        def draw(number: int) -> None:
            width, height = SIZES[number % len(SIZES)]
            pipe.generate("a red circle", seed=number, steps=STEPS, width=width, height=height)

        def draw_all(numbers: Iterable[int]) -> None:
            for done in threads.map(draw, numbers):
                assert done is None

        bindings.mark("cold")
        draw_all(range(COLD))
        for first in range(0, requests, PER_PART):
            bindings.mark(f"warm {first}")
            draw_all(range(first, min(first + PER_PART, requests)))
        bindings.mark("close")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
