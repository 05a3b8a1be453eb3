"""Pieces of HTML."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path


def table(lines: Sequence[Sequence[str]], highlighted: Sequence[bool] = ()) -> str:
    """A table whose first line is the header; `highlighted`: which of the other rows are latentrt's."""
    header, *rows = lines
    marks = [*highlighted, *[False] * len(rows)]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr{' class=ours' if mark else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row, mark in zip(rows, marks, strict=False)
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(file: Path, caption: str) -> str:
    """A PNG embedded in the page; empty if there is no such file."""
    if file.suffix != ".png" or not file.is_file():
        return ""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def heading(title: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(title)}</h3>"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph, with a CSS class if one is given."""
    return f"<p{f' class={kind}' if kind else ''}>{escape(words)}</p>"


def code(words: str) -> str:
    """A block of commands."""
    return f"<pre><code>{escape(words)}</code></pre>"


def folded(title: str, content: str) -> str:
    """Content that is hidden until its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
