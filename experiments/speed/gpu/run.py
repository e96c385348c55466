"""Runs cases through servers (`serve.py`), each within its limit, and writes the results after every case."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import results
from plan import TOGETHER, Case
from results import Record
from serve import last_words

HERE = Path(__file__).parent
LEAST = 5.0  # seconds: with less left, no case begins


class Server:
    """A process that has made the imports of a tree, and forks a child for each case."""

    def __init__(self, tree: Path, work: Path) -> None:
        path = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
        environment = {
            **os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled",
            # To ask the driver for its devices would start CUDA in the server, and no child could use it then.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        }  # fmt: skip
        environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
        with (work / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "serve.py")], env=environment, cwd=work, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.pids: dict[str, int] = {}
        self.ended: dict[str, threading.Event] = {}
        self.began: dict[str, threading.Event] = {}
        self.lock = threading.Lock()
        self.is_ready, self.is_alive = threading.Event(), True
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError, KeyError):
                event = json.loads(line)
                name = event["name"]
                if not name:
                    self.is_ready.set()
                elif "pid" in event:
                    self.pids[name] = event["pid"]
                    self.began[name].set()
                else:
                    self.ended[name].set()
        self.is_alive = False
        for event in (self.is_ready, *self.began.values(), *self.ended.values()):
            event.set()

    def run(self, case: Mapping[str, object], seconds: float) -> bool:
        """Run a case; return whether it ended by itself within the seconds. The time of the imports does not count."""
        name = str(case["name"])
        self.is_ready.wait(120)
        with self.lock:
            self.began[name], self.ended[name] = threading.Event(), threading.Event()
            if not self.is_alive or self.process.stdin is None:
                return True
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(case) + "\n")
                self.process.stdin.flush()
        if self.ended[name].wait(seconds):
            return True
        with contextlib.suppress(ProcessLookupError, KeyError, PermissionError):
            os.killpg(self.pids[name], signal.SIGKILL)
        self.ended[name].wait(10)
        return False

    def close(self) -> None:
        """End the server and what it has started."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass
class Runner:
    """Runs cases and keeps their records.

    Attributes:
        out: the folder of results.csv, cases.jsonl and log.txt.
        work: the folder of everything else.
        trees: name of a tree to its folder, or to the reason why it is not there.
        missing: says why a case cannot run here; empty if it can.
        call: the name of this call.
        seconds: everything has to be over after so many.
        forks: cases are forked from a server that has made the imports; false: each makes its own.
    """

    out: Path
    work: Path
    trees: dict[str, Path | str]
    missing: Callable[[Case], str]
    call: str
    seconds: float
    large_batch: int = 256
    forks: bool = True
    servers: dict[str, list[Server]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for folder in (self.out, self.work, self.work / "cases"):
            folder.mkdir(parents=True, exist_ok=True)
        self.state = self.work / "cases.jsonl"
        self.records = results.read(self.state)
        self.no_forks = self.work / "no_forks"  # an earlier call found that a child of a fork cannot use the device
        self.forks = self.forks and not self.no_forks.is_file()
        self.started = time.monotonic()

    def run_all(self, cases: Sequence[Case], jobs: int) -> None:
        """Run the cases that are not done, in the order given, those that never began first; for the phases see `plan.py`."""
        open_cases = [case for case in cases if not self._is_done(case)]
        open_cases.sort(key=lambda case: getattr(self.records.get(case.name), "outcome", "") in ("error", "overran"))
        first = [case for case in open_cases if case.name == "machine"]
        if self.forks:
            for name in {case.tree for case in open_cases}:
                self._server(name)  # the imports of all trees at the same time
        for case in first:
            self.run(case)
            if self.records[case.name].outcome != "measured" and self.forks:
                # A child of a fork could not use the device, perhaps. Each case pays for its own imports then.
                self.forks = False
                self.no_forks.touch()
                self.run(case)
        alone = [case for case in open_cases if case.alone and case not in first]
        together = [case for case in open_cases if not case.alone]
        self.side_by_side(together, jobs, TOGETHER if alone else 1.0)
        for case in alone:
            self.run(case)
        tried = ("no time", "overran") if alone else ("no time",)
        self.side_by_side([case for case in together if self.records[case.name].outcome in tried], jobs)

    def side_by_side(self, cases: Sequence[Case], jobs: int, share: float = 1.0) -> None:
        """Run cases, `jobs` at a time, until this share of the time is over."""
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda case: self.run(case, share), cases))

    def _is_done(self, case: Case) -> bool:
        return case.name in self.records and self.records[case.name].outcome in results.DONE

    def _server(self, tree: str) -> Server | None:
        place = self.trees[tree]
        if isinstance(place, str):
            return None
        with self.lock:
            there = self.servers.setdefault(tree, [])
            if not self.forks or not there or not there[-1].is_alive:
                there.append(Server(place, self.work))
            return there[-1]

    def run(self, case: Case, share: float = 1.0) -> None:
        """Run one case, whatever comes of it, and write the results. It ends when this share of the time is over."""
        deadline = self.started + share * self.seconds
        left = deadline - time.monotonic()
        place = self.trees[case.tree]
        reason = self.missing(case) or (place if isinstance(place, str) else "")
        if reason:
            return self.keep(Record(case.name, "skipped", reason, call=self.call))
        if left < LEAST:
            if case.name in self.records and self.records[case.name].outcome != "skipped":
                return None  # an earlier record says more
            return self.keep(Record(case.name, "no time", "the next call runs it", call=self.call))
        number = f"{list(self.records).index(case.name) if case.name in self.records else len(self.records)}-{time.time_ns()}"
        rows, log = (self.work / "cases" / f"{number}.{kind}" for kind in ("jsonl", "log"))
        log.touch()
        server = self._server(case.tree)
        assert server is not None
        server.is_ready.wait(max(1.0, left))
        started = time.monotonic()
        limit = min(case.limit, deadline - started)
        arguments = case.arguments
        if case.kind == "measure":
            arguments = {**arguments, "words": [*arguments["words"], f"run_dir={self.work / 'runs' / number}"]}
        message = {
            "name": f"{case.name} {number}", "kind": case.kind, "arguments": arguments, "rows": str(rows), "log": str(log),
            "environment": case.environment,
        }  # fmt: skip
        has_ended = server.run(message, limit)
        if not self.forks:
            server.close()
        values, outcome, note = results.read_case(rows)
        if not has_ended:
            outcome, note = "overran", f"ended after {limit:.0f} s; {last_words(log)}"
        elif not outcome:
            outcome, note = "error", f"its process died; {last_words(log) or last_words(self.work / 'server.log')}"
        self.keep(Record(case.name, outcome, note, values, time.monotonic() - started, self.call), log)

    def keep(self, record: Record, log: Path | None = None) -> None:
        """Write a record, its output and the table."""
        with self.lock:
            self.records = results.keep(self.out, self.state, record, self.large_batch)
            if log is not None:
                with (self.out / "log.txt").open("a") as file:
                    lines = log.read_text(errors="replace").splitlines()[-150:]
                    file.write("\n".join((f"==== {record.name}: {record.outcome}", *lines, "")))
            print(f"{record.outcome:10} {record.name:52} {record.seconds:6.1f} s  {record.note}", flush=True)

    def close(self) -> None:
        """End all servers."""
        for servers in self.servers.values():
            for server in servers:
                server.close()
