"""Parts that tests share: real data if present, small models, and runs of the real entry points."""

import importlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.run import Config
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.methods import Stepwise
from stepwise_pl.models.build import build_model
from stepwise_pl.models.learner import Learner
from stepwise_pl.tasks import Multiplication
from tests import background, forked

# A shell that starts pytest in the background may have it ignore these, and a run inherits that. Tests send them to runs.
for ignored, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, default)

OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
REPO = Path(__file__).parent.parent
DATA = REPO.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Use one thread: the models are so small that a second one only waits."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    background.end_all()


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests away from the user's cache of tokenised data."""
    os.environ["STEPWISE_PL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def shared_data() -> Path:
    if not DATA.is_dir():
        pytest.skip("no ../shared/data here")
    return DATA


@pytest.fixture
def gpt2_tokenizer(shared_data: Path) -> PreTrainedTokenizerBase:
    return build_tokenizer(str(shared_data / "gpt2-tokenizer"), ())


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer("symbols", Multiplication().symbols())


def small_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0, **config: object) -> PreTrainedModel:
    """A random GPT-2 shape without dropout, in evaluation mode. Weights are large, so that predictions differ."""
    torch.manual_seed(seed)
    settings = {"layers": 2, "heads": 2, "width": 32, "positions": 128, "dropout": 0.0} | config
    return build_model(
        ModelConfig(**settings, config={"initializer_range": 0.3}),  # type: ignore[arg-type]
        tokenizer,
    ).eval()


def learner(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: object) -> Learner:
    """The learner of `method=stepwise` around the model."""
    return Learner(model, int(tokenizer.eos_token_id), Stepwise(**settings))  # type: ignore[arg-type]


def every(count: int, cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test: one of `count` always, the others in `make long`."""
    return [
        case if not place % count else pytest.param(case, marks=pytest.mark.long) for place, case in enumerate(cases)
    ]


COMMANDS = (
    "train", "ask", "evaluate", "compare", "probe", "patch", "lens", "report", "export", "demo", "harness", "write_data", "check_data", "dashboard", "sweep",
)  # fmt: skip


def schema_of(name: str) -> type:
    """The dataclass of a command's settings."""
    if name == "train":
        return Config
    schema: type = getattr(importlib.import_module(f"stepwise_pl.{name}"), f"{name.title().replace('_', '')}Config")
    return schema


def command(
    *args: str, cwd: Path = REPO, check: bool = True, timeout: int = 400, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m stepwise_pl.<args>` as a user would, without network."""
    result = forked.run(f"stepwise_pl.{args[0]}", list(args[1:]), cwd, {**os.environ, **OFFLINE, **env}, timeout)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


# One-digit products: 1 epoch of 20 steps, 2 CoT tokens, seconds to train.
SMALL = (
    "task=mult2x2", "task.digits=1", "task.split=ordered", "model.layers=1", "model.heads=2", "model.width=64",
    "data.batch_size=32", "data.epoch_size=640", "optimizer.lr=5e-3", "schedule.delta=1", "trainer.duration=6epochs",
    "trainer.log_every_n_steps=5", "schedule.rewarmup_steps=5",
)  # fmt: skip


def made_once(name: str, make: Callable[[Path], None], temporary: pytest.TempPathFactory) -> Path:
    """A copy, for the caller alone, of a folder that `make` fills once for all test processes."""
    base = temporary.getbasetemp()
    original = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"once-{name}"
    with FileLock(f"{original}.lock"):
        if not original.is_dir():
            fresh = original.with_suffix(".tmp")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            make(fresh)
            fresh.rename(original)
    return Path(shutil.copytree(original, temporary.mktemp(name) / name, symlinks=True))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        out = command("train", *SMALL, "run_dir=small", cwd=folder, PYTHONPATH=str(REPO))
        (folder / "small" / "stdout.txt").write_text(out.stdout)
        (folder / "small" / "stderr.txt").write_text(out.stderr)

    return made_once("small", make, tmp_path_factory) / "small"


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products of two digits, with the checkpoints of 0, 1 and 2 removed tokens."""

    def make(folder: Path) -> None:
        words = ("trainer.keep_every_removed=1", "trainer.duration=4epochs", f"run_dir={folder / 'stages'}")
        command("train", *SMALL, *words)

    return made_once("stages", make, tmp_path_factory) / "stages"


@pytest.fixture(scope="session")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer that knows any text: it has a token for each byte."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("bytes")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder
