"""Made-up tables and texts whose statistics are exact in binary, so that every machine resolves the same task."""

import random
from pathlib import Path

ROWS = 100
KEPT = 64
"""`limit` of each split: a mean over so many numbers is exact."""
GOOD = ("fine", "warm", "clear", "bright", "kind", "lively")
BAD = ("dull", "cold", "muddy", "grey", "harsh", "weary")
OTHER = ("the", "a", "film", "story", "night", "of", "and", "with", "some", "very", "scene", "actor")


def write_texts(path: Path) -> None:
    """Short texts of three to nine words, good and bad in turn."""
    draw = random.Random(0)
    lines = []
    for number in range(ROWS):
        own = GOOD if number % 2 else BAD
        words = [draw.choice(own if draw.random() < 0.4 else OTHER) for _ in range(draw.randint(3, 9))]
        lines.append(f"{' '.join([*words, f'n{number}'])}\t{'good' if number % 2 else 'bad'}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_table(path: Path) -> None:
    """Two numbers in quarters, one of them missing at times, a category, a class of three and a number to predict."""
    draw = random.Random(1)
    lines = ["width,height,colour,kind,price"]
    for number in range(ROWS):
        width, height = draw.randint(-8, 8) / 4, draw.randint(-8, 8) / 4
        colour = draw.choice(("red", "green", "blue"))
        kind = ("low", "middle", "high")[(width + height > -0.5) + (width - height > 0.5)]
        price = 2 * width - height + (colour == "red") + draw.randint(-2, 2) / 4
        lines.append(f"{width},{height if number % 9 else ''},{colour},{kind},{price}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_data(folder: Path) -> None:
    """texts.tsv and table.csv."""
    write_texts(folder / "texts.tsv")
    write_table(folder / "table.csv")
