"""The kernels that TensorRT-RTX compiles while it runs: kept with their build, or in the user's cache."""

import logging
from pathlib import Path
from typing import Any

import pytest
from tensorrt_runner import SIZES, StandInTensorRT


def test_runner_reads_the_kernels_of_the_process_before(rtx: StandInTensorRT) -> None:
    given: list[bytes] = []
    for _ in range(2):
        engine = rtx.open(IRuntimeCache__deserialize=lambda blob: given.append(blob) or True)
        engine.bind(SIZES)
        engine.close()
        rtx.backend.close()
    assert given == [b"kernels"]


def test_kernels_are_compiled_at_once_and_saved_after_the_first_inference(
    rtx: StandInTensorRT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = {"kernels": b"one"}
    engine = rtx.open(IRuntimeCache__serialize=lambda: cache["kernels"])
    binding = engine.bind(SIZES)
    strategy = rtx.stand_in.given["IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy"]
    assert strategy == rtx.module.DynamicShapesKernelSpecializationStrategy.EAGER
    assert rtx.backend.kernels is not None
    file = tmp_path / "kernels" / f"tensorrt-rtx-{rtx.module.__version__}-geforce-rtx-4090.cache"
    assert not file.exists()
    binding.run()
    assert file.read_bytes() == b"one"
    cache["kernels"] = b"two"
    binding.run()
    assert file.read_bytes() == b"one"
    engine.bind(SIZES).run()
    assert file.read_bytes() == b"two"
    cache["kernels"] = b"three"
    rtx.backend.kernels.files = [tmp_path / "decoder.engine" / "not-a-folder.cache"]
    engine.bind(SIZES).run()
    rtx.backend.close()
    (record,) = warnings_in(caplog)
    assert "cannot be written, so the next process compiles its kernels again" in record.message


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was warned of; another test of the run may have let information through, too."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def run_once(rtx: StandInTensorRT, folder: Path, **answers: Any) -> None:
    """Load an engine from a build's folder, bind it and run it, and end."""
    rtx.open(folder=folder, **answers).bind(SIZES).run()
    rtx.backend.close()


def test_kernels_travel_with_their_build(rtx: StandInTensorRT, tmp_path: Path) -> None:
    """What one machine compiled is read on the next, and copied into a build that has none."""
    given: list[bytes] = []
    answers = {"IRuntimeCache__deserialize": lambda blob: given.append(blob) or True}
    run_once(rtx, tmp_path / "build", **answers)
    (made,) = (tmp_path / "build" / "kernels").glob("*.cache")
    assert (made.read_bytes(), given) == (b"kernels", [])
    (tmp_path / "build").rename(tmp_path / "moved")
    run_once(rtx, tmp_path / "moved", **answers)
    assert given == [b"kernels"]
    assert not (tmp_path / "cache").exists()
    user = tmp_path / "cache" / "latentrt" / "kernels" / made.name
    user.parent.mkdir(parents=True)
    user.write_bytes(b"kernels")
    run_once(rtx, tmp_path / "another", **answers)
    assert given == [b"kernels"] * 2
    assert (tmp_path / "another" / "kernels" / made.name).read_bytes() == b"kernels"


def test_kernels_of_a_build_that_cannot_be_written_go_to_the_user_s_cache(
    rtx: StandInTensorRT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "kernels").write_text("no folder can be made here")
    given: list[bytes] = []
    answers = {"IRuntimeCache__deserialize": lambda blob: given.append(blob) or True}
    for _ in range(2):
        run_once(rtx, tmp_path / "build", **answers)
    (file,) = (tmp_path / "cache" / "latentrt" / "kernels").glob("*.cache")
    assert (file.read_bytes(), given) == (b"kernels", [b"kernels"])
    assert not warnings_in(caplog)


def test_kernels_that_the_driver_refuses_are_looked_for_elsewhere_and_compiled_anew(
    rtx: StandInTensorRT, tmp_path: Path
) -> None:
    run_once(rtx, tmp_path / "build")
    (made,) = (tmp_path / "build" / "kernels").glob("*.cache")
    made.write_bytes(b"of another driver")
    user = tmp_path / "cache" / "latentrt" / "kernels" / made.name
    user.parent.mkdir(parents=True)
    user.write_bytes(b"of this driver")
    given: list[bytes] = []
    answers = {"IRuntimeCache__deserialize": lambda blob: given.append(blob) or blob == b"of this driver"}
    run_once(rtx, tmp_path / "build", **answers)
    assert given == [b"of another driver", b"of this driver"]
    assert made.read_bytes() == b"kernels"
