"""Write the table of docs/parity.md: python tests/parity_table.py [FOLDER] (ten minutes; FOLDER keeps the exports)."""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from exports import shared_bundle, shared_checkpoint
from task_cases import DIFFERENT, ROWS, TASKS, Case, Models, cases, difference

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
BEGIN, END = "<!-- tasks: python tests/parity_table.py -->", "<!-- end of tasks -->"
NOT_THERE = "–"

Figure = Callable[[list[Case]], str]


def table(figure: Figure) -> str:
    """The Markdown between the markers, with this figure for the cases of each cell that are not in `DIFFERENT`."""
    cells: dict[tuple[str, str], list[Case]] = {}
    for case in cases():
        if case not in DIFFERENT:
            cells.setdefault((case.row, case.task), []).append(case)
    lines = [["model", *TASKS], ["---"] * (1 + len(TASKS))]
    for row in ROWS:
        found = (cells.get((row, task)) for task in TASKS)
        lines.append([row, *(NOT_THERE if one is None else figure(one) for one in found)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def between_markers(page: str) -> str:
    return page.split(BEGIN + "\n\n")[1].split("\n\n" + END)[0]


def main(folder: Path) -> None:
    models = Models(lambda family: (shared_checkpoint(folder, family), shared_bundle(folder, family)))

    def measured(alike: list[Case]) -> str:
        """The largest difference over the cell's cases, and how many they are."""
        found = {case: difference(models, case) for case in alike}
        for case, value in found.items():
            print(f"{case}: {value}/255", file=sys.stderr)
        return f"{max(found.values())}/255 ({len(found)})"

    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(between_markers(page), table(measured)), encoding="utf-8")
    for case in DIFFERENT:
        print(f"{case}: {difference(models, case)}/255, not in the table", file=sys.stderr)
    models.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with TemporaryDirectory() as folder:
            main(Path(folder))
