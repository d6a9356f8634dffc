"""One figure as one file that stands alone: SVG as the page draws it, or PNG through matplotlib, as its suffix says."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from dualoptim_cli.errors import UserError
from dualoptim_cli.files import write_atomic
from dualoptim_cli.report.figures import Figure, png, svg

SUFFIXES = (".png", ".svg")
TITLE_HEIGHT = 24


def check(path: Path) -> None:
    """Refuse a file that cannot be drawn to, before there is anything to draw."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} ends in neither .png nor .svg.", "The suffix of --plot says what is drawn.")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder.", "Choose another --plot.")


def write(figure: Figure, path: Path) -> None:
    """Draw a figure into a file. Raises UserError where PNG is asked for and matplotlib is not installed."""
    check(path)
    if path.suffix.lower() == ".svg":
        write_atomic(path, alone(figure))
        return
    with TemporaryDirectory(dir=path.parent) as folder:
        (drawn,) = png.write([figure], Path(folder))
        shutil.move(drawn, path)


def alone(figure: Figure) -> str:
    """The figure as an SVG document: with its title on it, and the page's colours in it."""
    style = files("dualoptim_cli.report.page").joinpath("page.css").read_text(encoding="utf-8")
    drawn = svg.draw(figure)
    box = drawn.partition('viewBox="0 0 ')[2].partition('"')[0]
    width, height = box.split()
    tall = int(height) + TITLE_HEIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * int(width)}" height="{2 * tall}" '
        f'viewBox="0 {-TITLE_HEIGHT} {width} {tall}"'
    )
    paper = f'<rect y="{-TITLE_HEIGHT}" width="{width}" height="{tall}" style="fill:var(--paper)"/>'
    title = f'<text x="0" y="{8 - TITLE_HEIGHT // 2}" class="label">{svg.clean(figure.title)}</text>'
    body = drawn.partition(f'viewBox="0 0 {box}"')[2]
    return f"{head}{body.replace('</title>', f'</title><style>{style}</style>{paper}{title}', 1)}\n"
