"""Import the modules of the commands for `tests.forked`. No import may start a thread."""

import importlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it when it is imported

for name in (
    "compare",
    "data.checking",
    "evaluation.scorer",
    "inside.cause",
    "inside.look",
    "inside.overview",
    "models.export",
    "models.trained_run",
    "reporting.lens_text",
    "reporting.page",
    "reporting.run_text",
    "reporting.sweep",
    "reporting.tradeoff",
    "runs.sweep_folder",
    "training.build",
    "training.pace",
    "training.resume",
    "training.rollback",
    "training.wandb_runs",
    "write_data",
    "harness",
):
    importlib.import_module(f"stepwise_pl.{name}")
for name in ("matplotlib.pyplot", "plotly.graph_objects", "wandb"):
    importlib.import_module(name)
