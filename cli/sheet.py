"""A contact sheet: pictures in a grid, each with its prompt below."""

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 12
FONT_SIZE = 13
LINES = 2
LEAST_WIDTH = 160


def contact_sheet(pictures: Sequence[Image.Image], labels: Sequence[str], columns: int = 4) -> Image.Image:
    """One RGB picture of all pictures with their labels, at most two lines each, on white."""
    font = ImageFont.load_default(FONT_SIZE)
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    cell = max(LEAST_WIDTH, *(picture.width for picture in pictures)) + MARGIN
    height = max(picture.height for picture in pictures)
    line = math.ceil(FONT_SIZE * 1.3)
    row = height + LINES * line + MARGIN
    sheet = Image.new("RGB", (columns * cell + MARGIN, rows * row + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    letters = int((cell - MARGIN) / (FONT_SIZE * 0.55))
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = MARGIN + index % columns * cell, MARGIN + index // columns * row
        sheet.paste(picture, (x + (cell - MARGIN - picture.width) // 2, y + height - picture.height))
        for number, text in enumerate(textwrap.wrap(label, letters, max_lines=LINES, placeholder="…")):
            draw.text((x, y + height + 2 + number * line), text, fill="black", font=font)
    return sheet
