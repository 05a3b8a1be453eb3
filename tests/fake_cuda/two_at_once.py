"""Program: one pipeline draws while, on another thread, pipelines of the same bundle are loaded, used and closed.

Argument: the bundle. What the runtime logs is printed.
"""

import logging
import sys
from threading import Event, Thread

from fake_cuda import bindings

SIZES = tuple((96, height) for height in range(64, 144, 8))
LOADS = 3


def main(bundle: str) -> None:
    """Draw new sizes, which are captured, until the other thread is done."""
    bindings.install()
    from latentrt.runtime import Pipeline, pipeline_work

    pipeline_work.check_finite = lambda *_: None  # the sampler writes whether a picture failed, and it did nothing
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    done = Event()

    def draw(pipe: Pipeline, number: int) -> None:
        width, height = SIZES[number % len(SIZES)]
        pipe.generate("a red circle", seed=number, steps=8, width=width, height=height)

    def load_and_draw() -> None:
        try:
            for number in range(LOADS):
                with Pipeline.load(bundle, "onnxruntime", "cuda:0") as other:
                    draw(other, number)
        finally:
            done.set()

    with Pipeline.load(bundle, "onnxruntime", "cuda:0") as pipe:
        draw(pipe, 0)
        bindings.mark("together")
        thread = Thread(target=load_and_draw)
        thread.start()
        number = 0
        while not done.is_set():
            number += 1
            draw(pipe, number)
        thread.join()
        bindings.mark("close")


if __name__ == "__main__":
    main(sys.argv[1])
