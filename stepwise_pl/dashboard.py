"""`python -m stepwise_pl.dashboard`: a W&B workspace for the runs of a project."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.errors import UserError, first_line, require

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

REMOVED = "schedule/removed_tokens"


@dataclass
class DashboardConfig:
    """A W&B workspace for the runs of a project: `python -m stepwise_pl.dashboard entity=<account or team>`."""

    # W&B's account or team; needed.
    entity: str = ""
    # W&B's project.
    project: str = "stepwise_pl"
    # The title of the workspace.
    name: str = "Stepwise Internalization"
    # The batch size at which `evaluate` measured speed, besides 1.
    batch_size: int = 200

    def __post_init__(self) -> None:
        if not self.entity:
            raise UserError("entity is not set: give the W&B account or team that owns the project")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "must be at least 1")


def dashboard(config: DashboardConfig) -> str:
    """Lay the workspace out in W&B; return its address.

    Raises:
        UserError: the library is not installed, or W&B does not take the workspace.
    """
    try:
        workspace = layout(config)
        workspace.save()
    except ModuleNotFoundError:
        raise UserError("W&B's library for workspaces is not installed; pip install wandb-workspaces") from None
    except Exception as error:
        raise UserError(
            f"project={config.project}: W&B does not take the workspace ({first_line(error)}); log in, and name an "
            "entity that you may write to"
        ) from None
    say(f"workspace       {workspace.url}")
    return str(workspace.url)


def layout(config: DashboardConfig) -> "Workspace":
    """The sections and panels. Metrics have the names that training and `evaluate wandb=true` log."""
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports import v2 as wr

    def line(title: str, *metrics: str, x: str = "Step", low_high: tuple[float, float] | None = None) -> "wr.LinePlot":
        more = {} if low_high is None else {"range_y": low_high}
        return wr.LinePlot(title=title, x=x, y=list(metrics), smoothing_type="none", **more)

    def scatter(title: str, x: str, y: str) -> "wr.ScatterPlot":
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))

    sections = {
        "Accuracy versus removed tokens": [
            line("answer accuracy (validation)", "val/answer_accuracy", "val/answer_accuracy_any_length", x=REMOVED,
                 low_high=(0, 1)),
            line("token accuracy (validation)", "val/token_accuracy", x=REMOVED, low_high=(0, 1)),
            line("loss (validation)", "val/loss", x=REMOVED),
        ],
        "Result": [
            scatter("accuracy and removed tokens (test)", "result/removed_tokens", "result/test_accuracy"),
            scatter("accuracy and seconds of training", "result/seconds", "result/test_accuracy"),
            wr.BarPlot(title="accuracy (test)", metrics=["result/test_accuracy"]),
        ],
        "Accuracy versus speed (evaluate wandb=true)": [
            scatter("one problem at a time", "eval/problems_per_second_batch_1", "eval/answer_accuracy"),
            scatter(f"{config.batch_size} at a time", f"eval/problems_per_second_batch_{config.batch_size}", "eval/answer_accuracy"),
        ],
        "Loss": [line("loss (training)", "train/loss"), line("loss (validation), by step", "val/loss")],
        "Schedule and resets": [
            line("removed tokens", REMOVED),
            line("step of the last optimizer reset", "schedule/reset_step"),
            line("attempt (rollbacks of the guard)", "attempt"),
            line("learning rate", "train/lr"),
        ],
        "Throughput": [line("examples per second of training", "train/examples_per_second")],
        "Stages": [wr.MediaBrowser(title="stages", media_keys=["stages"]), wr.MediaBrowser(title="samples", media_keys=["samples"])],
    }  # fmt: skip
    return ws.Workspace(
        entity=config.entity, project=config.project, name=config.name,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
    )  # fmt: skip


def main() -> None:
    """Run the command."""
    entry_point("dashboard", DashboardConfig, dashboard)


if __name__ == "__main__":
    main()
