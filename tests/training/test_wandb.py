"""W&B: offline files are read back, runs resume, and a server may die or refuse in the middle of a run."""

import json
import os
import random
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.training import LoggerConfig
from stepwise_pl.reporting.inside_files import write_pictures
from stepwise_pl.runs.inside import Fourier, Row, Similarity, write_rows
from stepwise_pl.runs.records import read_metrics
from stepwise_pl.training.wandb_inside import log_inside
from stepwise_pl.training.wandb_runs import CarefulWandbLogger, log_evaluation
from tests.conftest import SMALL, command
from tests.reporting.look_inside import fourier, similarity
from tests.system.test_resume import assert_the_same, start

OFFLINE = ("logger=wandb", "logger.offline=true")
KEY = "0123456789" * 4
KINDS = ("train/loss", "val/loss", "test/loss")


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline W&B file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room  # a record's header never crosses a block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def logged(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The x-axis of each metric, and the rows, from all offline files of a run in the order of writing."""
    from wandb.proto import wandb_internal_pb2 as pb

    axes, rows = {}, []
    for file in sorted(folder.rglob("run-*.wandb"), key=lambda path: path.stat().st_mtime):
        for data in wandb_records(file):
            record = pb.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "metric":
                axes[record.metric.name] = record.metric.step_metric
            elif record.WhichOneof("record_type") == "history":
                rows.append({(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item})
    return axes, rows


def test_offline_files_have_removed_tokens_as_their_axis(tmp_path: Path) -> None:
    command("train", *SMALL, *OFFLINE, f"run_dir={tmp_path}", "trainer.duration=3epochs")
    axes, rows = logged(tmp_path)
    for name in ("val/answer_accuracy", "val/token_accuracy", "val/loss"):
        assert axes[name] == "schedule/removed_tokens"
    points = [(row["schedule/removed_tokens"], row["val/answer_accuracy"]) for row in rows if "val/loss" in row]
    written = [row for row in read_metrics(tmp_path / "metrics.csv") if row["val/loss"]]
    assert [removed for removed, _ in points] == [0, 1, 2]
    assert [accuracy for _, accuracy in points] == pytest.approx(
        [float(row["val/answer_accuracy"]) for row in written], abs=1e-6
    )


def records(folder: Path, kind: str) -> list[Any]:
    """All records of a kind in the offline files under a folder."""
    from wandb.proto import wandb_internal_pb2 as pb

    out = []
    for file in sorted(folder.rglob("run-*.wandb"), key=lambda path: path.stat().st_mtime):
        for data in wandb_records(file):
            record = pb.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == kind:
                out.append(getattr(record, kind))
    return out


def summary_of(folder: Path) -> dict[str, Any]:
    """The last summary of the W&B run."""
    out = {}
    for record in records(folder, "summary"):
        out |= {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.update}
    return out


def tables(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of all tables with a name."""
    out = []
    for file in sorted(folder.rglob(f"{name}_*.table.json")):
        table = json.loads(file.read_text())
        out += [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return out


def test_the_result_goes_to_wandb_as_tables_and_a_model(tmp_path: Path) -> None:
    command("train", *SMALL, *OFFLINE, f"run_dir={tmp_path}", "logger.artifact=true", "logger.tags=[mine]")
    (run,) = {record.run_id: record for record in records(tmp_path, "run")}.values()
    assert list(run.tags) == ["mult2x2", "tiny", "stepwise", "mine"]
    assert (run.project, run.job_type, run.run_group) == ("stepwise_pl", "train", "")
    assert run.display_name.startswith("mult2x2-tiny-stepwise/")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["schedule"]["delta"] == 1 and config["derived"]["max_cot_tokens"] == 2
    summary, said = json.loads((tmp_path / "summary.json").read_text()), summary_of(tmp_path)
    for key in ("test_accuracy", "removed_tokens", "seconds", "examples_seen", "collapsed"):
        assert said[f"result/{key}"] == summary[key]
    assert (said["result/test_low"], said["result/test_high"]) == tuple(summary["test_interval"])
    stages = [json.loads(line) for line in (tmp_path / "stages.jsonl").read_text().splitlines()]
    rows = tables(tmp_path, "stages")
    for key in ("step", "removed_tokens", "accuracy", "examples"):
        assert [row[key] for row in rows] == [one[key] for one in stages]
    assert [[row["digit 1"], row["digit 2"]] for row in rows] == [one["digits"] for one in stages]
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    samples = tables(tmp_path, "samples")
    assert [(row["prompt"], row["prediction"], row["right"]) for row in samples] == [
        (one["prompt"], one["prediction"], one["right"]) for stage in stages for one in stage["samples"]
    ]
    (artifact,) = [record for record in records(tmp_path, "artifact") if record.type == "model"]
    kept = {entry.path for entry in artifact.manifest.contents}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= kept
    assert not list(tmp_path.glob("artifact-*"))


@pytest.mark.long
def test_a_sweep_is_a_group_and_a_resumed_run_stays_in_it(tmp_path: Path) -> None:
    few = ("trainer.duration=1epochs", "data.epoch_size=64")
    command("train", "-m", *SMALL, *few, *OFFLINE, "optimizer.lr=1e-3,2e-3", cwd=tmp_path)
    folders = sorted(path.parent for path in tmp_path.rglob("config.yaml"))
    assert len(folders) == 2
    command("train", f"run_dir={folders[0]}", "resume=true", "trainer.duration=2epochs", cwd=tmp_path)
    groups = set()
    for folder in folders:
        found = records(folder, "run")
        groups |= {run.run_group for run in found}
        assert {tuple(run.tags) for run in found} == {("mult2x2", "tiny", "stepwise")}
    assert len(records(folders[0], "run")) > len(records(folders[1], "run"))
    (group,) = groups
    assert group.startswith("mult2x2-tiny-stepwise+lr-1e-3_2e-3")  # the sweep's name


@pytest.mark.long
def test_an_evaluation_is_a_run_of_its_own_in_wandb(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    command("evaluate", f"run={folder}", "speed_problems=2", "batch_size=5", "wandb=true", "offline=true")
    (run,) = {record.run_id: record for record in records(folder, "run")}.values()
    assert (run.job_type, run.project, run.display_name.split("/")[0]) == (
        "eval",
        "stepwise_pl",
        "mult2x2-tiny-stepwise",
    )
    (written,) = folder.glob("evaluations/best-test-*.json")
    result, said = json.loads(written.read_text()), summary_of(folder)
    for key in ("answer_accuracy", "problems_per_second_batch_1", "problems_per_second_batch_5", "removed_tokens"):
        assert said[f"eval/{key}"] == result[key]
    predicted = [json.loads(line) for line in written.with_suffix(".jsonl").read_text().splitlines()]
    for row, one in zip(tables(folder, "predictions"), predicted, strict=True):
        assert row == {key: one[key] for key in ("index", "prompt", "target", "prediction", "right")}


def test_the_dashboard_shows_what_is_logged(run_dir: Path, tmp_path: Path) -> None:
    """A run or an evaluation has every metric of a panel."""
    from stepwise_pl.dashboard import DashboardConfig, layout

    folder = tmp_path / "run"
    command("train", *SMALL, *OFFLINE, f"run_dir={folder}", "trainer.duration=2epochs")
    command("evaluate", f"run={folder}", "speed_problems=2", "batch_size=5", "wandb=true", "offline=true")
    known = {key for row in logged(folder)[1] for key in row} | set(summary_of(folder)) | {"_step"}
    spec = json.loads(layout(DashboardConfig(entity="me", batch_size=5))._to_model().model_dump_json())
    sections = spec["spec"]["section"]["panel_bank_config"]["sections"]
    shown: set[str] = set()
    for section in sections:
        for panel in section["panels"]:
            config = panel["config"]
            found = [config.get(key) for key in ("x_axis", "y_axis", "metrics", "media_keys")]
            found = [name for one in found if one for name in (one if isinstance(one, list) else [one])]
            assert found, panel
            shown |= {name.removeprefix("summary:") for name in found}
    assert shown <= known, shown - known
    assert {"val/answer_accuracy", "schedule/removed_tokens", "train/loss", "schedule/reset_step", "eval/problems_per_second_batch_1",
            "train/examples_per_second"} <= shown  # fmt: skip


def test_tensorboard_has_the_rows_and_removed_tokens_as_an_axis(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command("train", *SMALL, "logger=tensorboard", f"run_dir={tmp_path}", "trainer.duration=2epochs")
    command("train", f"run_dir={tmp_path}", "resume=true", "trainer.duration=4epochs")
    found: dict[str, list[tuple[int, float]]] = {}
    for folder in sorted((tmp_path / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    rows = read_metrics(tmp_path / "metrics.csv")
    for tag in ("train/loss", "train/lr", "val/answer_accuracy", "val/loss", "schedule/removed_tokens"):
        written = [(int(row["step"]), float(row[tag])) for row in rows if row[tag]]
        assert {step for step, _ in written} <= {step for step, _ in found[tag]}
        for step, value in written:
            assert any(step == at and value == pytest.approx(seen, rel=1e-5) for at, seen in found[tag]), (tag, step)
    validated = [
        (int(row["schedule/removed_tokens"]), float(row["val/answer_accuracy"])) for row in rows if row["val/loss"]
    ]
    assert found["versus_removed_tokens/val/answer_accuracy"] == [(k, pytest.approx(a, abs=1e-6)) for k, a in validated]
    assert min(value for _, value in found["train/examples_per_second"]) > 0


@pytest.mark.long
def test_a_resumed_run_is_one_run_without_gap_or_duplicate(tmp_path: Path) -> None:
    """The run stops inside a step twice, the second time earlier than the first, so that rows come again."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole).returncode == 0
    assert start(cut, *OFFLINE, end="inside the step,27,exception").returncode == 1
    assert start(cut, "resume=true", end="inside the step,24,exception").returncode == 1
    out = start(cut, "resume=true")
    assert out.returncode == 0, out.stderr[-2000:]
    assert_the_same(whole, cut)
    assert len({path.stem for path in cut.rglob("run-*.wandb")}) == 1  # one id
    assert len(list(cut.rglob("run-*.wandb"))) == 3
    _, rows = logged(cut)
    there = [(int(row["trainer/global_step"]), kind) for row in rows for kind in KINDS if kind in row]
    written = [(int(row["step"]), kind) for row in read_metrics(cut / "metrics.csv") for kind in KINDS if row[kind]]
    assert there == written


@pytest.mark.long
def test_after_a_sigkill_rows_come_again(tmp_path: Path) -> None:
    """Nobody knows how much W&B had: it may have rows since the last checkpoint twice, with the same values."""
    cut = tmp_path / "cut"
    assert start(cut, *OFFLINE, end="after the step,26,SIGKILL").returncode == -9
    assert start(cut, "resume=true").returncode == 0
    _, rows = logged(cut)
    there: dict[tuple[int, str], set[float]] = {}
    for row in rows:
        for kind in KINDS:
            if kind in row:
                there.setdefault((int(row["trainer/global_step"]), kind), set()).add(row[kind])
    assert all(len(values) == 1 for values in there.values())
    _, resumed = json.loads((cut / "environment.json").read_text())["sessions"]
    written = {(int(row["step"]), kind) for row in read_metrics(cut / "metrics.csv") for kind in KINDS if row[kind]}
    assert {key for key in written if key[0] > resumed["from_step"]} <= there.keys() <= written


class Server(ThreadingHTTPServer):
    """Answers W&B's client as far as a run needs. Once `fails_with` is set, it is the status of every answer."""

    fails_with: int | None = None
    streaming = False  # rows of the run have arrived
    rows = 0

    def __init__(self) -> None:
        self.views: list[dict[str, Any]] = []  # saved workspaces
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None: ...

    def answer(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(self.server.fails_with or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/graphql":
            self.server.streaming = True
            if b"wandb-history.jsonl" in body and not self.server.fails_with:
                self.server.rows += len(json.loads(body)["files"]["wandb-history.jsonl"]["content"])
            return self.answer({"exitcode": None, "limits": {}})
        asked = json.loads(body)
        project = {"id": "p", "name": "stepwise_pl", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": "one", "displayName": "one", "historyLineCount": 0, "project": project}
        if "upsertView" in asked["query"] and not self.server.fails_with:
            self.server.views.append(asked["variables"])
        files = [
            {"name": name, "uploadUrl": f"{self.server.url}/put/{name}"}
            for name in asked.get("variables", {}).get("files") or []
        ]
        replies: dict[str, Any] = {
            "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files},
            "serverInfo": {"features": []},
            "upsertView": {"view": {"id": "v", "name": "v"}, "inserted": True},
            "entity": {"organization": {"coreWeaveOrganizationId": None}},
        }
        return self.answer({"data": {key: value for key, value in replies.items() if f"{key}" in asked["query"]}})


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def online(server: Server, key: str = KEY) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": key, "WANDB_ERROR_REPORTING": "false"}


@pytest.mark.long
def test_rows_arrive_online(server: Server, tmp_path: Path) -> None:
    command("train", *SMALL, "logger=wandb", f"run_dir={tmp_path / 'run'}", **online(server))
    assert server.rows == len(read_metrics(tmp_path / "run" / "metrics.csv"))


def test_the_dashboard_is_saved(server: Server, tmp_path: Path) -> None:
    out = command("dashboard", "entity=me", "name=Mine", cwd=tmp_path, **online(server))
    (view,) = server.views
    assert view["entityName"] == "me" and view["projectName"] == "stepwise_pl" and "Mine" in json.dumps(view)
    assert "val/answer_accuracy" in json.dumps(view)
    assert out.stdout.splitlines()[-1].startswith("workspace ")
    server.fails_with = 401
    out = command("dashboard", "entity=me", cwd=tmp_path, check=False, **online(server))
    assert out.returncode == 2
    assert out.stderr.strip().splitlines()[-1].startswith("error: project=stepwise_pl: W&B does not take the workspace")
    assert "Traceback" not in out.stderr


@pytest.mark.long
@pytest.mark.parametrize("how", ["down", "wrong key"])
def test_a_server_that_fails_in_the_middle_costs_nothing(
    server: Server, run_dir: Path, tmp_path: Path, how: str
) -> None:
    """The server takes the start of the run, and then is gone or refuses the key."""
    folder = tmp_path / "run"

    def fail() -> None:
        while not server.streaming:
            if stop.wait(0.05):
                return
        server.fails_with = 401
        if how == "down":
            server.shutdown()
            server.server_close()

    stop = threading.Event()
    failing = threading.Thread(target=fail)
    failing.start()
    try:
        out = command(
            "train", *SMALL, "logger=wandb", "logger.finish_timeout=4", "trainer.duration=40epochs", f"run_dir={folder}",
            **online(server),
        )  # fmt: skip
    finally:
        stop.set()
        failing.join()
    assert server.streaming and server.rows == 0
    steps = [int(row["step"]) for row in read_metrics(folder / "metrics.csv") if row["train/loss"]]
    assert steps == [*range(5, 801, 5)]
    assert json.loads((folder / "summary.json").read_text())["steps"] == 800
    if how == "down":
        (line,) = [line for line in out.stderr.splitlines() if line.startswith("W&B has not taken all of the run")]
        assert f"wandb sync {folder}" in line and "metrics.csv" in line
    assert "wandb sync" in out.stderr  # W&B says so itself
    assert len(logged(folder)[1]) == len(read_metrics(folder / "metrics.csv"))  # `wandb sync` will send these


def test_a_client_that_dies_costs_nothing(tmp_path: Path) -> None:
    """W&B's own process is killed, as can happen if memory is short."""
    out = start(tmp_path / "run", *OFFLINE, options=("--kill=wandb-core,33",))
    assert out.returncode == 0, out.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 80
    assert any(line.startswith("W&B has not taken all of the run") for line in out.stderr.splitlines())


def test_a_wrong_key_at_the_start_is_one_line(server: Server, tmp_path: Path) -> None:
    server.fails_with = 401
    out = command("train", *SMALL, "logger=wandb", f"run_dir={tmp_path / 'run'}", check=False, **online(server))
    assert out.returncode == 2
    line = out.stderr.strip().splitlines()[-1]
    assert line.startswith("error: logger=wandb: W&B does not start")
    assert "logger.offline=true" in line
    assert "Traceback" not in out.stderr


@pytest.mark.long
def test_no_secret_lands_in_the_run_folder_or_the_logs(server: Server, tmp_path: Path) -> None:
    secrets = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_" + "s3cret" * 6, "MY_TOKEN": "t0ken" * 8}
    out = command("train", *SMALL, "logger=wandb", f"run_dir={tmp_path / 'run'}", **online(server) | secrets)
    command("evaluate", f"run={tmp_path / 'run'}", "speed_problems=0", **secrets)
    command("export", f"run={tmp_path / 'run'}", **secrets)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for secret in secrets.values():
        for path in files:
            assert secret.encode() not in path.read_bytes(), path
        assert secret not in out.stdout + out.stderr


def test_a_row_that_wandb_has_is_not_logged_again(tmp_path: Path) -> None:
    """W&B is not even started for such a row."""
    notes = tmp_path / "wandb.json"
    notes.write_text(json.dumps({"id": "mine", "has": {"0 train": 20, "1 val": 10}}))
    logger = CarefulWandbLogger(notes, 32, save_dir=tmp_path, offline=True)
    assert logger.version == "mine"
    for metrics, step in (({"train/loss": 1.0}, 20), ({"val/loss": 1.0, "attempt": 1}, 5)):
        logger.log_metrics(metrics, step)
    assert logger._experiment is None and not logger.failed
    assert logger.has == {"0 train": 20, "1 val": 10}


def test_an_evaluation_that_wandb_does_not_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_API_KEY": "", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    summary = {"checkpoint": "best.ckpt", "removed_tokens": 0, "data_digest": "d"}
    with pytest.raises(UserError, match=r"^wandb=true: W&B does not start \(.*\); log in, or add offline=true$"):
        log_evaluation(tmp_path, LoggerConfig(), {"derived": {"name": "mine"}}, summary, [], offline=False)


def test_a_look_inside_is_a_run_of_its_own_in_wandb(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    rows: dict[type[Row], list[Row]] = {
        Similarity: list(similarity(random.Random(0))),
        Fourier: list(fourier(random.Random(0))),
    }
    for kind, found in rows.items():
        write_rows(folder, found, kind)
    pictures = write_pictures(folder, list(rows), tmp_path / "pictures")
    before = dict(os.environ)
    log_inside(folder, "lens", pictures, offline=True)
    assert dict(os.environ) == before
    # W&B's own process lives on, and may write the end of the file a little later.
    deadline = time.monotonic() + 60
    while not records(folder, "exit") and time.monotonic() < deadline:
        time.sleep(0.1)
    (run,) = {record.run_id: record for record in records(folder, "run")}.values()
    assert (run.job_type, run.project, run.display_name.split("/")[0]) == (
        "inside",
        "stepwise_pl",
        "mult2x2-tiny-stepwise",
    )
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["inside"] == "lens"
    for kind, found in rows.items():
        (file,) = folder.rglob(f"{Path(kind.file).stem}_*.table.json")
        written = json.loads(file.read_text())
        assert written["columns"] == [field.name for field in fields(kind)]
        # W&B has the numbers of the tables on the disk, which have six digits.
        assert written["data"] == [[pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
                                    for value in astuple(row)] for row in found]  # fmt: skip
    (row,) = records(folder, "history")
    sent = {tuple(item.nested_key): json.loads(item.value_json) for item in row.item}
    names = {picture.stem for picture in pictures}
    shown = {key[0] for key in sent if key[0].startswith("inside/")}
    assert names and shown == {"inside/similarity", "inside/fourier", *(f"inside/{name}" for name in names)}
    for name in names:
        assert sent[f"inside/{name}", "_type"] == "image-file"
        (image,) = folder.rglob(Path(sent[f"inside/{name}", "path"]).name)
        assert image.read_bytes() == (tmp_path / "pictures" / f"{name}.png").read_bytes()


def test_a_look_inside_that_wandb_does_not_take_is_refused(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WANDB_API_KEY": "", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^wandb=true: W&B does not start \(.*\); log in, or add offline=true$"):
        log_inside(run_dir, "patch", [], offline=False)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "swaps.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"swaps.csv: is no table of swap rows"):
        log_inside(tmp_path, "patch", [], offline=True)
