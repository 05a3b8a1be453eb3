"""The report: one page that parses, holds every scenario and needs no network; the README's table."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from bench_results import ENVIRONMENT, GPU_ENVIRONMENT, POINT, WALLS, finished, gpu_records, records, row, write_run

from latentrt.benchmarks.report import text
from latentrt.benchmarks.report.issue import issue_block
from latentrt.benchmarks.report.markdown import BEGIN, END, headline_table, replace_between_markers
from latentrt.benchmarks.report.page import render, write_report
from latentrt.benchmarks.results import Failure, NotRun, Results
from latentrt.runtime.errors import BenchmarkError

VOID = {"meta", "img", "br", "link", "path", "use", "circle", "rect"}


class Page(HTMLParser):
    """Collects text, ids and links, and checks that every element that opens is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.ids, self.links, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "xlink:href", "action", "poster") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    return write_run(folder), folder


@pytest.fixture(scope="module")
def page(run):
    results, folder = run
    parsed = Page()
    parsed.feed(write_report(results, folder).read_text(encoding="utf-8"))
    assert parsed.open == []
    return parsed


def test_every_scenario_has_a_section(page):
    assert [name for name in ("race", "curve", "part", "forms", "host", "broken") if name not in page.ids] == []
    words = " ".join(page.words)
    for name in ("race", "curve", "part", "forms", "host"):
        assert f"latentrt bench --scenario {name}" in words


def test_figures_failures_and_who_did_not_run_are_told(page):
    words = " ".join(page.words)
    for said in (
        "3.00×",
        "Failed scenarios:",
        "diffusers: load: <out of memory>",
        "optimum-onnx: not asked for",
        "A <fast> processor",
        "60.0 µs",
        "3.00 ms",
        "70 dB",
        "channels-last",
        "4 Conv float16",
        "latentrt bench --quick",
    ):
        assert said in words, said


def test_the_page_needs_no_network(run, page):
    results, folder = run
    assert len(page.links) > 2
    assert [link[:40] for link in page.links if not link.startswith(("#", "data:image/png;base64,"))] == []
    source = render(results, folder)
    assert re.findall(r"https?:|@import|url\((?!#)|<script|<link", source) == []


def test_charts_and_pictures_stand_inside(page):
    # comparison, stages, roofline; curve; component; builds; host
    assert page.tags.count("svg") >= 7
    assert page.tags.count("img") == len(WALLS)


def test_ids_are_not_given_twice_with_different_content(run):
    """Charts share a page: a clip path of one must not be another's."""
    results, folder = run
    paths = re.findall(r'<clipPath id="([^"]+)">(.*?)</clipPath>', render(results, folder), re.DOTALL)
    assert len({name for name, _ in paths}) == len(set(paths))


def test_a_run_in_which_everything_failed_has_a_report(tmp_path):
    failed = (ENVIRONMENT, Failure("race", "", "no disk"), NotRun("race", "optimum", "why not"), finished("race"))
    (tmp_path / "pictures").mkdir()
    parsed = Page()
    parsed.feed(render(Results(failed), tmp_path))
    assert "no disk" in " ".join(parsed.words)
    assert headline_table(Results(failed)).startswith("A <fast> processor")


def test_the_markdown_table(run):
    results, _ = run
    table = headline_table(results)
    assert (
        "**race**: 96×96, 10 steps, guidance 5. demo, fp32, cpu, sampler euler; median of 3 interleaved rounds."
        in table
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert lines[0][:4] == ["contender", "median", "quartiles", "time over latentrt's"]
    assert lines[2][:4] == ["latentrt", "2.00 s", "1.50 s – 2.50 s", "1"]
    assert lines[3][:4] == ["diffusers", "6.00 s", "4.00 s – 9.00 s", "3.00× (2.00 – 4.00)"]
    assert all(len(line) == len(lines[0]) for line in lines[:4])
    assert "    latentrt bench --scenario race\n" in table
    assert "A <fast> processor, 2 threads, 24.0 GB, Some GPU (driver 580.1). 2026-11-22, commit 0123456789ab." in table


def test_a_gpu_run_as_a_block_for_an_issue():
    block = issue_block(Results(gpu_records()))
    lines = block.splitlines()
    assert lines[0] == "### latentrt bench --gpu"
    for line in (
        "- NVIDIA GeForce RTX 4090: compute capability 8.9, driver 580.95, 24564 MiB of memory",
        "- A <fast> processor, 2 cores, 24.0 GB, Linux-6.8",
        "- latentrt 0.1.0, torch 2.13.0+cu130, tensorrt 11.4.0, Python 3.12.1",
        "- commit 0123456789ab, 2026-11-22T07:00:00+00:00",
        "**demo-gpu**: 96×96, 10 steps, guidance 5. demo, fp16, cuda, sampler euler; median of 3 interleaved rounds. "
        "Differences are those from diffusers in float32 on the CPU.",
        "- forms, latentrt, TensorRT: 120 s, 4.00 GB, at most 6.00 GB of memory",
        "- not run: latentrt, TensorRT-RTX: tensorrt-rtx has no engines for this GPU",
    ):
        assert lines.count(line) == 1, line
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    header, _, *ranked = rows
    found = {cells[0]: dict(zip(header, cells, strict=True)) for cells in ranked}
    assert set(found) == {"latentrt", "latentrt, TensorRT", "diffusers"}
    ours = found["latentrt, TensorRT"]
    assert ours["steps per second"] == "6.25"  # 10 steps; the denoising takes 0.8 of 2 s
    assert (ours["per picture"], ours["first request"]) == ("2.00 s", "9.00 s")
    assert (ours["engines built in"], ours["size"]) == ("90.0 s", "4.00 GB")
    assert (ours["GPU memory"], ours["CUDA graph"], ours["PSNR"]) == ("500 MB", "yes", "62 dB")
    assert found["latentrt"]["CUDA graph"] == "no"
    assert (found["diffusers"]["CUDA graph"], found["diffusers"]["engines built in"]) == ("–", "–")
    assert [line for line in lines if line.startswith("- not run")] == [lines[-1]]
    (failed,) = [line for line in lines if line.startswith("- FAILED")]
    assert failed.startswith("- FAILED sdxl-base stable-fast: stable-fast: load: no such kernel")
    assert len(failed) < 350


def test_only_runs_on_a_gpu_and_their_rehearsals_have_a_block():
    assert issue_block(Results(records())) == ""
    assert issue_block(Results(())) == ""
    rehearsal = replace(ENVIRONMENT, command="latentrt bench --gpu --rehearse", gpus=())
    block = issue_block(Results((rehearsal, row("latentrt"), finished("race"))))
    assert "- A rehearsal: small versions of the scenarios, on the CPU" in block
    assert "Differences" not in block
    unknown = replace(GPU_ENVIRONMENT, gpus=(), commit="")
    block = issue_block(Results((unknown,)))
    assert "- No GPU was described" in block
    assert "- commit unknown (an installed package)" in block


def test_the_table_goes_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    replace_between_markers(readme, "| new |\n")
    assert readme.read_text() == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"
    replace_between_markers(readme, "| newer |")
    assert readme.read_text() == f"before\n{BEGIN}\n\n| newer |\n\n{END}\nafter\n"


@pytest.mark.parametrize("content", ["nothing", f"{END} {BEGIN}", BEGIN])
def test_a_readme_without_markers(tmp_path, content):
    readme = tmp_path / "README.md"
    readme.write_text(content)
    with pytest.raises(
        BenchmarkError, match=r"--readme .*needs the lines <!-- bench-table --> and <!-- /bench-table -->"
    ):
        replace_between_markers(readme, "x")
    assert readme.read_text() == content


def test_a_readme_that_is_not_there(tmp_path):
    with pytest.raises(BenchmarkError, match=r"--readme .*none.md: cannot be read"):
        replace_between_markers(tmp_path / "none.md", "x")


@pytest.mark.parametrize(
    ("value", "said"),
    [(123.4, "123 s"), (1.234, "1.23 s"), (18.0, "18.0 s"), (0.0456, "45.6 ms"), (7.89e-5, "78.9 µs"), (0.0, "0 µs")],
)
def test_seconds_in_words(value, said):
    assert text.seconds(value) == said


def test_sizes_and_columns_without_figures():
    assert [text.size(value) for value in (None, 5e6, 2.5e9)] == ["–", "5 MB", "2.50 GB"]
    assert text.without_empty_columns(("a", "b"), [("1", "–"), ("2", "–")]) == [["a"], ["1"], ["2"]]
    assert row("latentrt").point == POINT
