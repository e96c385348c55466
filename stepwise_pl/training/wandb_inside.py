"""What a look inside a run has found, in W&B: its tables and pictures, as a run of job type `inside`."""

import logging
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from stepwise_pl.common.errors import go_on_without
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.config.upgrade import upgraded
from stepwise_pl.runs.inside import COMMANDS, Row, read_rows
from stepwise_pl.runs.saved_config import saved_config
from stepwise_pl.training.wandb_runs import environment_kept, start_run

log = logging.getLogger(__name__)

# Rows of a table that are sent to W&B, at most. W&B itself takes 200,000.
MOST_ROWS = 20_000


def log_inside(run_dir: Path, command: str, pictures: Sequence[Path], offline: bool) -> None:
    """Log tables of `<run>/inside/` and pictures of them as a W&B run, with the project, name, group and tags of the run.

    Tables are called `inside/<table>`, pictures `inside/<name of the file>`. What the process had of W&B before is as it was.

    Args:
        command: `probe`, `patch` or `lens`. A table of it that is not there is left out.
        pictures: PNG files; files of other kinds are left out.

    Raises:
        UserError: W&B does not start, or a table cannot be read.
    """
    tables = {kind: rows for kind in COMMANDS[command] if (rows := read_rows(run_dir, kind))}
    plain = upgraded(read_yaml(run_dir / "config.yaml"), run_dir / "config.yaml")
    with environment_kept():
        run = start_run(
            run_dir, saved_config(run_dir).logger, plain, job_type="inside", offline=offline, about={"inside": command}
        )
        with go_on_without("W&B's copy of the look inside"):
            # One row of the run's history holds all.
            run.log({**_tables(tables), **_pictures(pictures)})


def _tables(tables: "dict[type[Row], list[Any]]") -> dict[str, Any]:
    import wandb

    found = {}
    for kind, rows in tables.items():
        if len(rows) > MOST_ROWS:
            log.warning("W&B gets the first %d of %d rows of %s", MOST_ROWS, len(rows), kind.file)
        table = wandb.Table(columns=[field.name for field in fields(kind)])
        for row in rows[:MOST_ROWS]:
            table.add_data(*astuple(row))
        found[f"inside/{Path(kind.file).stem}"] = table
    return found


def _pictures(files: Sequence[Path]) -> dict[str, Any]:
    import wandb

    return {f"inside/{file.stem}": wandb.Image(str(file)) for file in files if file.suffix == ".png"}
