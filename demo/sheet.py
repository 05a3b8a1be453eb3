"""Contact sheets: pictures in a grid, each with its prompt below."""

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 12
FONT_SIZE = 13
LINES = 3
LEAST_WIDTH = 180


def contact_sheet(pictures: Sequence[Image.Image], labels: Sequence[str], columns: int = 4) -> Image.Image:
    """Draw all pictures on white, each with its label in at most three lines below.

    Small pictures are enlarged by a whole factor without smoothing.
    """
    factor = max(1, round(LEAST_WIDTH / max(picture.width for picture in pictures)))
    shown = [picture.resize((picture.width * factor, picture.height * factor), 0) for picture in pictures]
    columns = min(columns, len(shown))
    cell = max(LEAST_WIDTH, *(picture.width for picture in shown)) + MARGIN
    height = max(picture.height for picture in shown)
    line = math.ceil(FONT_SIZE * 1.3)
    row = height + LINES * line + MARGIN
    sheet = Image.new("RGB", (columns * cell + MARGIN, math.ceil(len(shown) / columns) * row + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    letters = int((cell - MARGIN) / (FONT_SIZE * 0.52))
    for index, (picture, label) in enumerate(zip(shown, labels, strict=True)):
        x, y = MARGIN + index % columns * cell, MARGIN + index // columns * row
        sheet.paste(picture, (x + (cell - MARGIN - picture.width) // 2, y + height - picture.height))
        for number, text in enumerate(textwrap.wrap(label, letters, max_lines=LINES, placeholder="…")):
            draw.text((x, y + height + 2 + number * line), text, fill="black", font=font)
    return sheet
