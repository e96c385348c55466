"""The result of a sweep: one row per cell, as a table, sweep.csv and figures."""

from pathlib import Path

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import go_on_without
from stepwise_pl.reporting.figures.sweeps import sweep_chart, sweep_grid
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.runs.cells import Cell, SweepRun, cells_of_sweep, csv_of, row_of
from stepwise_pl.runs.sweep_folder import Sweep, alone, read_sweep, write_sweep


def refresh(folder: Path, draw: bool = False) -> tuple[Sweep, list[Cell[SweepRun]]]:
    """Bring sweep.json and sweep.csv up to date, and the figures if `draw` asks for them. The sweep may still be running.

    Raises:
        UserError: `folder` is no sweep folder, or a file in it is damaged.
    """
    # A folder that is no sweep is refused before anything is written into it.
    read_sweep(folder)
    with alone(folder):
        sweep = read_sweep(folder)
        cells = cells_of_sweep(sweep)
        write_sweep(sweep, cells=[{"swept": cell.config, **row_of(cell)} for cell in cells])
        write_text(folder / "sweep.csv", csv_of([{**cell.config, **row_of(cell)} for cell in cells]))
        if draw and any(cell.ended for cell in cells):
            title = folder.resolve().name
            with go_on_without("sweep.png"):
                write_figure(sweep_chart(cells, title), [], folder)
            with go_on_without("sweep-grid.png"):
                if (grid := sweep_grid(cells, title)) is not None:
                    write_figure(grid, [], folder)
    return sweep, cells
