"""Files that are found, read and written while pictures are drawn: late components, repeats from every format."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentrt.runtime.pipeline import Pipeline

LATENTRT = Path(sys.executable).with_name("latentrt")
FAST = ("--steps", "2", "--width", "64", "--height", "64")


def latentrt(*arguments: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [LATENTRT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, cwd=cwd, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_a_component_is_loaded_after_a_change_of_the_folder(
    sdxl_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle was named by a relative path; the VAE's encoder is loaded when a request needs it."""
    monkeypatch.chdir(sdxl_bundle.parent)
    with Pipeline.load(sdxl_bundle.name) as pipe:
        monkeypatch.chdir(tmp_path)
        result = pipe.generate("a star", image=Image.new("RGB", (64, 64), "red"), strength=0.5, steps=2, seed=1)
        assert result.images[0].size == (64, 64)
        assert pipe.rebuild_command(pipe.limits).startswith(f"build-engine {sdxl_bundle} ")


@pytest.mark.slow
def test_the_command_line_end_to_end(sdxl_bundle: Path, tmp_path: Path) -> None:
    """Stdout, an unusual place, a repeat from a JPEG, and a run that is stopped."""
    drawn = latentrt("generate", sdxl_bundle, "a cat", *FAST, "--seed", 3, "-o", "-", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(io.BytesIO(drawn.stdout)) as picture:
        pixels = np.asarray(picture)
    assert drawn.stderr.decode().splitlines()[-1].startswith('{"files": [], "seed": 3,')

    named = latentrt("generate", sdxl_bundle, "a cat", *FAST, "--seed", 3, "-o", "{seed}/{n}.png", cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    with Image.open(tmp_path / "3" / "1.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels)

    for name in ("a.jpg", "b.jpg"):
        source = ("--from-png", "3/1.png") if name == "a.jpg" else ("--from-png", "a.jpg")
        assert latentrt("generate", sdxl_bundle, *source, "-o", name, cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()

    fresh = [latentrt("generate", sdxl_bundle, "a cat", *FAST, "--seed", -1, cwd=tmp_path).stdout for _ in range(2)]
    assert fresh[0].startswith(b'{"files": ["out.png"]')
    assert fresh[1].startswith(b'{"files": ["out-1.png"]')
    assert fresh[0].split(b'"seed"')[1][:10] != fresh[1].split(b'"seed"')[1][:10]


@pytest.mark.slow
def test_ctrl_c_while_it_draws(sdxl_bundle: Path, tmp_path: Path) -> None:
    command = [LATENTRT, "generate", sdxl_bundle, "a cat", "--steps", "1000", "--images", "2", "-o", "a.png"]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stderr is not None
    assert b"no build for this machine" in run.stderr.readline()
    os.kill(run.pid, signal.SIGINT)
    stdout, stderr = run.communicate(timeout=60)
    assert (run.returncode, stdout) == (130, b"")
    assert stderr.splitlines()[-1] == b"stopped; nothing was left half done"
    assert [*tmp_path.iterdir()] == []
