"""The result of a sweep: one row per cell, as a table, sweep.csv and figures."""

from pathlib import Path

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import go_on_without
from stepwise_pl.reporting.sweep_figures import grid_of, plot_cells, plot_grid
from stepwise_pl.runs.cells import Cell, SweepRun, cells_of_sweep, csv_of, row_of
from stepwise_pl.runs.sweep_folder import Sweep, alone, read_sweep, write_sweep


def refresh(folder: Path, draw: bool = False) -> tuple[Sweep, list[Cell[SweepRun]]]:
    """Bring sweep.json and sweep.csv up to date, and the figures if asked to; at any time, also while the sweep goes on.

    Raises:
        UserError: it is no sweep folder, or a file in it is damaged.
    """
    read_sweep(folder)  # says so if it is none
    with alone(folder):
        sweep = read_sweep(folder)
        cells = cells_of_sweep(sweep)
        write_sweep(sweep, cells=[{"swept": cell.config, **row_of(cell)} for cell in cells])
        write_text(folder / "sweep.csv", csv_of([{**cell.config, **row_of(cell)} for cell in cells]))
        if draw and any(cell.ended for cell in cells):
            with go_on_without("sweep.png"):
                plot_cells(cells, folder.resolve().name, folder / "sweep")
            with go_on_without("sweep-grid.png"):
                if (keys := grid_of(cells)) is not None:
                    plot_grid(cells, *keys, folder.resolve().name, folder / "sweep-grid")
    return sweep, cells
