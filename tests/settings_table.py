"""Write the table of settings in docs/runtime.md: python tests/settings_table.py (a second)."""

from pathlib import Path

from latentrt.runtime.request.setting import Group, Setting
from latentrt.runtime.request.settings import SETTINGS

PAGE = Path(__file__).parents[1] / "docs" / "runtime.md"
BEGIN, END = "<!-- settings: python tests/settings_table.py -->", "<!-- end of settings -->"


def table() -> str:
    """The Markdown between the markers, group by group."""
    lines = ["| setting | meaning | given as | default |", "|---|---|---|---|"]
    for group in Group:
        lines.append(f"| **{group}** | | | |")
        lines += [_row(name, setting) for name, setting in SETTINGS.items() if setting.group is group]
    return "\n".join(lines)


def _row(name: str, setting: Setting) -> str:
    given = [setting.kind.form or setting.kind.expects, setting.repetition]
    if setting.needs:
        given.append(f"with {' or '.join(f'`{other}`' for other in setting.needs)}")
    cells = (f"`{name}`", setting.help, "; ".join(filter(None, given)), setting.default_words or "–")
    return f"| {' | '.join(cells)} |"


def between_markers(page: str) -> str:
    """The part of a page that this script writes."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}", encoding="utf-8")
