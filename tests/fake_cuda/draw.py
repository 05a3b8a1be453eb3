"""Program: draw a bundle's pictures on the fake device, in parts "<n> begin", "<n> step <i>" and "<n> finish".

Arguments: the bundle, then how many requests; "new" as a third one gives each a prompt of its own. Kernels do nothing,
so the pictures are of no use.
"""

import sys

from fake_cuda import bindings

STEPS = 5


def main(bundle: str, requests: int, prompts: str = "same") -> None:
    """Draw one picture after another, each a step at a time."""
    bindings.install()
    from latentrt.runtime import Pipeline

    bindings.mark("load")
    with Pipeline.load(bundle, "onnxruntime", "cuda:0") as pipeline:
        for number in range(requests):
            draw(pipeline, number, f"{number} red circles" if prompts == "new" else "a red circle")
        bindings.mark("close")


def draw(pipeline: object, number: int, prompt: str) -> None:
    """One request, with a mark before every stage."""
    from latentrt.runtime import Pipeline

    assert isinstance(pipeline, Pipeline)
    bindings.mark(f"{number} begin")
    drawing = pipeline.begin(pipeline.request(prompt, seed=number, steps=STEPS, width=96, height=96))
    for step in range(STEPS):
        bindings.mark(f"{number} step {step}")
        pipeline.advance([drawing])
    bindings.mark(f"{number} read back")
    pipeline._work.loop.read_back()
    for picture in drawing.pictures:
        picture.failed = -1  # the sampler writes this, and it did nothing
    bindings.mark(f"{number} finish")
    pipeline.finish(drawing)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
