"""W&B: offline files read back, resumed runs, and a server that dies or refuses in the middle of a run."""

import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stepwise_pl.loggers import read_metrics
from tests.conftest import SMALL, command
from tests.test_resume import assert_the_same, start

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
    """Of all offline files of a run, in the order written: the x-axis of each metric, and the rows."""
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


def test_offline_has_removed_tokens_as_its_axis(tmp_path: Path) -> None:
    command("train", *SMALL, *OFFLINE, f"run_dir={tmp_path}", "trainer.max_epochs=3")
    axes, rows = logged(tmp_path)
    for name in ("val/answer_accuracy", "val/token_accuracy", "val/loss"):
        assert axes[name] == "schedule/removed_tokens"
    points = [(row["schedule/removed_tokens"], row["val/answer_accuracy"]) for row in rows if "val/loss" in row]
    written = [row for row in read_metrics(tmp_path / "metrics.csv") if row["val/loss"]]
    assert [removed for removed, _ in points] == [0, 1, 2]
    assert [accuracy for _, accuracy in points] == pytest.approx(
        [float(row["val/answer_accuracy"]) for row in written], abs=1e-6
    )


def test_a_resumed_run_is_one_run_without_gap_or_duplicate(tmp_path: Path) -> None:
    """Stopped inside a step twice, the second time before it got as far as the first, so that rows come again."""
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


def test_after_a_sigkill_rows_come_again(tmp_path: Path) -> None:
    """What W&B had got by then is not known: rows since the last checkpoint may be there twice, with the same values."""
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
    """Answers W&B's client as far as a run needs; `fails_with` is the status of every answer once it is set."""

    fails_with: int | None = None
    streaming = False  # the run is on its way
    rows = 0

    def __init__(self) -> None:
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
        files = [
            {"name": name, "uploadUrl": f"{self.server.url}/put/{name}"}
            for name in asked.get("variables", {}).get("files") or []
        ]
        replies: dict[str, Any] = {
            "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files},
            "serverInfo": {"features": []},
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


def test_online_rows_arrive(server: Server, tmp_path: Path) -> None:
    command("train", *SMALL, "logger=wandb", f"run_dir={tmp_path / 'run'}", **online(server))
    assert server.rows == len(read_metrics(tmp_path / "run" / "metrics.csv"))


@pytest.mark.parametrize("how", ["down", "wrong key"])
def test_a_server_that_fails_in_the_middle_costs_nothing(
    server: Server, run_dir: Path, tmp_path: Path, how: str
) -> None:
    """It takes the start of the run, and is then gone, or refuses the key."""
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
            "train", *SMALL, "logger=wandb", "logger.finish_timeout=4", "trainer.max_epochs=40", f"run_dir={folder}",
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
    assert "wandb sync" in out.stderr  # W&B's own words
    assert len(logged(folder)[1]) == len(read_metrics(folder / "metrics.csv"))  # what `wandb sync` will send


def test_a_client_that_dies_costs_nothing(tmp_path: Path) -> None:
    """W&B's own process, killed as it might be where memory is short."""
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
