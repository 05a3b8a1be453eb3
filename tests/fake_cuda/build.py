"""Program: build a bundle's engines for the fake device. Arguments: the bundle, and the target."""

import sys

from fake_cuda import bindings


def main(bundle: str, target: str) -> None:
    """Build; kernels do nothing, so the choice among forms is by chance."""
    bindings.install()
    from latentrt.engine.build import build_engines
    from latentrt.runtime.bundle import Bundle

    bindings.mark("build")
    record = build_engines(Bundle.open(bundle), "onnxruntime", target=target)
    for name, engine in record.engines.items():
        print(name, *engine.notes, sep="\n  ")
    bindings.mark("close")


if __name__ == "__main__":
    main(*sys.argv[1:])
