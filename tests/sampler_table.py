"""Write the parity tables of docs/samplers.md: python tests/sampler_table.py (a minute; needs scipy)."""

from collections.abc import Callable, Iterable
from pathlib import Path

from sampler_cases import COMMON, HAS_SCIPY, TRAINING, Case, common_cases, own_cases, training_cases
from sampler_parity import case_difference

from latentrt.runtime.samplers import SAMPLERS

PAGE = Path(__file__).parents[1] / "docs" / "samplers.md"
BEGIN, END = "<!-- parity: python tests/sampler_table.py -->", "<!-- end of parity -->"
NOT_THERE = "none"
STEPS = (3, 7, 16, 25)

Figure = Callable[[Case], str]


def tables(figure: Figure) -> str:
    """The Markdown between the markers, with this figure for each case."""
    own = [f"| `{case.sampler}` | {case.option} | {figure(case)} |" for case in own_cases()]
    return "\n".join(
        [
            _matrix(list(COMMON), common_cases(), figure),
            "",
            _matrix(list(TRAINING), training_cases(), figure),
            "",
            _row(["sampler", "config", "largest difference"]),
            _row(["---"] * 3),
            *own,
        ]
    )


def measured(case: Case) -> str:
    """The largest difference of any step at any of the step counts."""
    return f"{max(case_difference(case, steps) for steps in case.served(STEPS)):.1e}"


def between_markers(page: str) -> str:
    return page.split(BEGIN + "\n\n")[1].split("\n\n" + END)[0]


def _matrix(options: list[str], cases: Iterable[Case], figure: Figure) -> str:
    figures = {(case.sampler, case.option): figure(case) for case in cases}
    names = [name for name in SAMPLERS if any(sampler == name for sampler, _ in figures)]
    rows = [[f"`{name}`", *(figures.get((name, option), NOT_THERE) for option in options)] for name in names]
    return "\n".join(map(_row, [["sampler", *options], ["---"] * (1 + len(options)), *rows]))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    if not HAS_SCIPY:
        raise SystemExit("scipy is not installed: diffusers cannot be asked for lms and beta sigmas. pip install scipy")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(between_markers(page), tables(measured)), encoding="utf-8")


if __name__ == "__main__":
    main()
