"""Whole jobs through the command line, from a checkpoint to a picture."""

from pathlib import Path

import pytest
from command_line import run_main
from PIL import Image

from latentrt.runtime.bundle import Bundle

pytestmark = pytest.mark.slow


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def test_build_engine_takes_a_checkpoint_and_generate_draws(
    sdxl_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(tmp_path / "bundle")
    ranges = ["--width", "64:128:160", "--height", "64:128:160", "--images", "1:1:2", "--tokens", "77:77:154"]
    built = run_main(capsys, "build-engine", str(sdxl_checkpoint), "-o", bundle, "--backend", "onnxruntime", *ranges)
    assert built.exit == 0, built.stderr
    parts = {"unet_prologue", "unet_body"}
    assert set(built.result["engines"]) == set(Bundle.open(bundle).manifest.components) - {"unet"} | parts
    assert Bundle.open(bundle).manifest.limits.bounds("tokens") == (77, 77, 154)

    picture = tmp_path / "pictures" / "out.png"
    size = ["--width", "136", "--height", "72", "--images", "2"]
    drawn = run_main(
        capsys, "generate", bundle, "a red circle", "-o", str(picture), "--seed", "7", "--steps", "3", *size
    )
    assert drawn.exit == 0, drawn.stderr
    assert [Path(name).name for name in drawn.result["files"]] == ["out-1.png", "out-2.png"]
    assert size_of(Path(drawn.result["files"][1])) == (136, 72)

    refused = run_main(capsys, "generate", bundle, "a red circle", "--width", "1001")
    assert refused.exit == 1
    assert "width 1001: must be a multiple of 8; the nearest that is served is 160" in refused.error


def test_demo_ends_with_a_picture_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "sheet.png"
    first = run_main(capsys, "demo", "-o", str(picture), "--steps", "4")
    assert first.exit == 0, first.stderr
    assert str(picture) in "".join(first.stderr.split())
    assert size_of(picture)[0] > 300
    assert "exists. Add --force" in run_main(capsys, "demo", "-o", str(picture)).error
    again = run_main(capsys, "demo", "a red circle", "-o", str(picture), "--force", "--steps", "4")
    assert again.exit == 0, again.stderr
    assert again.result["seconds"]["export"] < first.result["seconds"]["export"] / 5, "the bundle is made once"
    one = run_main(capsys, "generate", "demo", "a red circle", "-o", str(tmp_path / "one.png"), "--steps", "2")
    assert one.exit == 0, one.stderr
