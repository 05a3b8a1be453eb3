"""What a run writes and reads back, and the arithmetic on it."""

import math

import numpy as np
import pytest
from bench_results import POINT, records, write_run
from PIL import Image

from latentrt.benchmarks import environment
from latentrt.benchmarks.difference import compare_files
from latentrt.benchmarks.environment import commit, describe, gpus
from latentrt.benchmarks.report.figures import entries, headlines, points
from latentrt.benchmarks.results import RECORDS, RESULTS, read
from latentrt.benchmarks.summary import ratios, summarise
from latentrt.runtime.backends.onnxruntime import usable_cores
from latentrt.runtime.errors import BenchmarkError


def test_every_record_survives_the_file(tmp_path):
    written = write_run(tmp_path / "run")
    assert read(tmp_path / "run") == written
    assert {type(record) for record in written.records} == set(RECORDS.values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", r"line 2: not a result of this version"),
        ('{"record": "gossip"}', r"line 2: not a result of this version \('gossip'\)"),
        ('{"record": "failure", "scenario": "x"}', r"line 2: .*missing 2 required"),
        (
            '{"record": "failure", "scenario": "x", "contender": "", "message": "", "colour": 1}',
            r"unknown fields colour",
        ),
        ("[1]", r"line 2: not a result of this version"),
    ],
)
def test_a_line_that_is_no_result(tmp_path, line, message):
    write_run(tmp_path / "run", records()[:1])
    with (tmp_path / "run" / RESULTS).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(BenchmarkError, match=message):
        read(tmp_path / "run")


def test_a_folder_without_results(tmp_path):
    with pytest.raises(
        BenchmarkError, match=r"results.jsonl: cannot be read .*Name a folder that latentrt bench wrote"
    ):
        read(tmp_path)


def test_summaries():
    found = summarise([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.lower, found.upper, found.least, found.most, found.count) == (3, 2, 4, 1, 5, 5)
    assert found.spread == pytest.approx(2 / 3)
    one = summarise([7.0])
    assert (one.median, one.lower, one.upper, one.count, one.spread) == (7, 7, 7, 1, 0)
    with pytest.raises(BenchmarkError, match="no samples: nothing to summarise"):
        summarise([])


def test_ratios_are_taken_round_by_round():
    """A round in which everything was slow counts like any other."""
    assert ratios([2.0, 60.0, 4.0], [1.0, 20.0, 1.0]) == (2, 3, 4)
    with pytest.raises(BenchmarkError, match="2 and 3 samples: ratios need the same rounds"):
        ratios([1, 2], [1, 2, 3])


def test_a_comparison_is_ranked_against_ours(tmp_path):
    results = write_run(tmp_path / "run")
    assert [found.scenario for found in headlines(results)] == ["race", "part"]
    assert points(results, "race") == [POINT]
    ours, other = entries(results, "race", POINT)
    assert (ours.row.contender, ours.is_ours, ours.seconds.median) == ("latentrt", True, 2)
    assert (other.label, other.is_ours, other.seconds.median, other.times_ours.median) == ("diffusers", False, 6, 3)
    assert (other.times_ours.least, other.times_ours.most) == (2, 4)
    assert ours.stages == pytest.approx({"text": 0.2, "denoise": 1.6, "decode": 0.2})
    assert ours.share_of_floor == pytest.approx(0.15 / 2)


def picture(file, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file)
    return file


def test_pictures_are_compared_pixel_by_pixel(tmp_path):
    reference = np.zeros((4, 4, 3), np.uint8)
    changed = reference.copy()
    changed[1, 2, 0] = 12
    found = compare_files(picture(tmp_path / "a.png", changed), picture(tmp_path / "b.png", reference))
    assert (found.max, found.mean) == (12, 12 / 48)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (144 / 48)))
    same = compare_files(tmp_path / "b.png", tmp_path / "b.png")
    assert (same.max, same.mean, same.psnr) == (0, 0, None)


def test_pictures_of_different_sizes(tmp_path):
    small = picture(tmp_path / "small.png", np.zeros((4, 4, 3)))
    large = picture(tmp_path / "large.png", np.zeros((8, 4, 3)))
    with pytest.raises(BenchmarkError, match=r"small.png: its shape is \[4, 4, 3\], the reference has \[8, 4, 3\]"):
        compare_files(small, large)
    with pytest.raises(BenchmarkError, match=r"none.png against .*cannot be compared"):
        compare_files(tmp_path / "none.png", large)


def test_tensors_are_compared_relative_to_the_reference(tmp_path):
    np.save(tmp_path / "a.npy", np.array([3.0, -4.0, 3.5, 4.0]))
    np.save(tmp_path / "b.npy", np.array([3.0, -4.0, 3.0, 4.0]))
    found = compare_files(tmp_path / "a.npy", tmp_path / "b.npy")
    scale = math.sqrt((9 + 16 + 9 + 16) / 4)
    assert found.unit == "relative"
    assert found.max == pytest.approx(0.5 / scale)
    assert found.mean == pytest.approx(0.25 / scale)


def test_the_environment_tells_what_a_reader_must_know(tmp_path):
    found = describe("latentrt bench --quick", 2)
    assert found.machine["cores"] == usable_cores() >= 1
    assert {"latentrt", "torch", "diffusers", "onnxruntime", "numpy"} <= found.versions.keys()
    assert found.machine["processor"]
    assert commit(tmp_path) == ""


def test_gpus_are_named_by_nvidia_smi_or_by_cuda(gpu, monkeypatch):
    monkeypatch.setattr(environment, "_output", lambda command: "")
    assert gpus() == [{"name": "NVIDIA GeForce RTX 4090", "compute_cap": "8.9"}]
    monkeypatch.setattr(environment, "_output", lambda command: "RTX 3060, 8.6, 580.95, 12288 MiB, 1800 MHz, 170 W, 94")
    (found,) = gpus()
    assert (found["name"], found["compute_cap"], found["memory.total"]) == ("RTX 3060", "8.6", "12288 MiB")
