"""The runtime generates with nothing of the export installed."""

import json
import subprocess
import sys
from pathlib import Path

BLOCKED = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "diffusers", "polygraphy")

SCRIPT = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
from latentrt.runtime import Pipeline

with Pipeline.load(sys.argv[1]) as pipe:
    result = pipe.generate("a red circle", steps=2, seed=3, width=72, height=64, images=2)
result.images[1].save(sys.argv[2])
import json
print(json.dumps([result.images[0].size, sorted(result.timings), [m for m in {BLOCKED!r} if m in sys.modules]]))
"""


def test_a_fresh_interpreter_without_torch_generates(sdxl_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(sdxl_bundle), str(tmp_path / "out.png")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == [[72, 64], ["decode", "denoise", "text"], []]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
