"""Colours and markers of runs, and how figures are saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Told apart by colour-blind readers (Okabe and Ito), and by shape in grey print.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

MARKERS = "osD^vPX"


@contextmanager
def pyplot() -> Iterator[Any]:
    """Matplotlib's pyplot for figures that become files: no display, text taken literally, every figure closed at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    try:
        # Names of runs are not to be read as formulas.
        with plt.rc_context({"text.parse_math": False, "text.usetex": False}):
            yield plt
    finally:
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)


def save_figure(figure: Any, stem: Path) -> list[Path]:
    """Write `<stem>.png` and `<stem>.svg`, each in one go."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        fresh = path.with_name(f"{path.name}.tmp")
        try:
            figure.savefig(fresh, format=path.suffix[1:], dpi=150)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    return paths


def style_of(cell: int) -> tuple[str, str]:
    """Colour and marker of the runs of a cell, the same in every figure; 49 different ones."""
    return COLORS[cell % len(COLORS)], MARKERS[(cell + cell // len(COLORS)) % len(MARKERS)]
