"""Counts what a bundle's engines make a CUDA device do, in the forms that builds for ONNX Runtime's provider have.

    PYTHONPATH=tests python -m fake_cuda.count_forms BUNDLE [ENGINE …]

Runs in the environment of the tests. Per engine and form: nodes on the CPU, and operations of a warm run at the
bundle's usual sizes and two rows, by kernel. Files as exported come first, then the forms.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fake_cuda.device import FakeDevice, build_libraries, make_environment
from fake_cuda.trace import Part, Work

from latentrt.engine.forms import CHANNELS_LAST, forms_of
from latentrt.engine.split_unet import GraphFiles
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.unet_parts import PARTS, WHOLE

TARGET = "cuda-sm89"


@contextmanager
def all_forms(bundle: Bundle, folder: Path) -> Iterator[dict[str, dict[str, Path]]]:
    """The files of each engine's forms, by engine and name of the form; they are there until the context ends."""
    with GraphFiles(bundle, folder / "graphs", TARGET) as graphs:
        engines = [name for name in bundle.manifest.components if name != WHOLE]
        yield {
            name: {form.name: file for form, file in forms_of("cuda", graphs.file(name), folder / name)}
            for name in (*engines, *PARTS)
        }


def run_form(device: FakeDevice, bundle: Bundle, log: Path, file: Path, form: str) -> tuple[list[str], Part]:
    """The operators that the CPU was given, and a warm run, at the bundle's usual sizes and two rows."""
    sizes: dict[str, int] = {}
    for spec in bundle.manifest.specs().values():
        sizes |= spec.sizes("opt")
    arguments = [f"{name}={size}" for name, size in (sizes | {"rows": 2}).items()]
    if "channels last" in form:
        arguments += [f"--{name}={value}" for name, value in CHANNELS_LAST.items()]
    printed, parts = device.run(log, "run_models", file, *arguments)
    (placed,) = json.loads(printed).values()
    (warm,) = (part for part in parts if part.name.endswith("warm run"))
    return [operator for operator, _ in placed], warm


def by_kernel(work: Work) -> list[str]:
    """Lines of a count and a kernel's name without its types, the most frequent first."""
    mangled = list(work.kernels)
    names = subprocess.run(["c++filt"], input="\n".join(mangled), text=True, capture_output=True, check=True)
    found = Counter({"products": work.gemms, **work.library_calls})
    for name, kernel in zip(names.stdout.splitlines(), mangled, strict=True):
        operation = re.search(r"OP_\w+", name)
        short = re.sub(r"^void |[<(].*", "", name.replace("(anonymous namespace)::", "")).rpartition("::")[2]
        found[f"{short} {operation[0]}" if operation else short] += work.kernels[kernel]
    return [f"    {count:5} {name}" for name, count in found.most_common()]


def main(path: str, *wanted: str) -> None:
    """Print the counts."""
    cache = Path(os.environ.get("LATENTRT_TEST_CACHE", "fake-cuda-cache")) / "fake_cuda"
    device = FakeDevice(build_libraries(cache), make_environment(cache))
    bundle = Bundle.open(path)
    with tempfile.TemporaryDirectory() as folder, all_forms(bundle, Path(folder)) as forms:
        exported = {name: {"as exported": bundle.onnx(name)} for name in bundle.manifest.components}
        for engine in wanted or (*exported, *forms):
            for form, file in (exported.get(engine, {}) | forms.get(engine, {})).items():
                on_the_cpu, warm = run_form(device, bundle, Path(folder) / "log", file, form)
                print(f"{engine}, {form}: {len(on_the_cpu)} nodes on the CPU, {warm.executed.operations} operations")
                print("\n".join(by_kernel(warm.executed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
