"""Every model under every experiment composes and builds; the sizes and the hyper-parameters are the published ones."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stepwise_pl.config.keys import flat
from stepwise_pl.config.known import CONF
from stepwise_pl.config.plain import to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.models.architecture import build, own_config
from stepwise_pl.models.build import check_architecture
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training.build import build_parts
from tests.config.test_config import composed
from tests.conftest import every

ALL_EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))
ARMS = [name for name in ALL_EXPERIMENTS if name.startswith("ablation_")]
EXPERIMENTS = [name for name in ALL_EXPERIMENTS if name not in ARMS or name.endswith("_stepwise")]
MODELS = sorted(path.stem for path in CONF.glob("model/*.yaml"))
# The vocabulary of the published checkpoint, and its parameters; tied ones count once.
PUBLISHED = {
    "gpt2": (50_257, 124_439_808),
    "gpt2-medium": (50_257, 354_823_168),
    "phi3": (32_064, 3_821_079_552),
    "mistral7b": (32_000, 7_241_732_096),
    "smollm2": (49_152, 134_515_008),
}
# Overrides that make any preset small. All types have these keys, or the preset sets them.
SMALL = [
    "model.pretrained=false", "model.layers=1", "model.heads=2", "model.width=16", "model.init_from=null",
    "model.lora.rank=0", "data.cache_dir=null",
]  # fmt: skip
KEPT = {"num_key_value_heads": 1, "intermediate_size": 24}


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_model_under_every_experiment_can_be_built(experiment: str, name: str) -> None:
    random = ("model.pretrained=false", "model.init_from=null", "model.lora.rank=0")
    config = composed(f"experiment={experiment}", f"model={name}", *random)
    check_architecture(config.model)  # on the meta device
    assert config.model.tokenizer == ("symbols" if name in ("tiny", "gpt2_2layer") else config.model.name)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("trainer/*.yaml")))
def test_every_trainer_composes_under_a_recipe_and_leaves_it_as_it_is(name: str) -> None:
    config, alone = (composed("experiment=gsm8k_mistral7b", *more) for more in ([f"trainer={name}"], []))
    assert config.trainer.accelerator == (name if name in ("cpu", "mps", "auto") else "gpu")
    assert (config.trainer.devices > 1) is (name in ("ddp", "fsdp2"))
    assert (config.trainer.strategy == "fsdp2") is (name == "fsdp2")
    for key in ("precision", "accumulate_grad_batches", "duration"):
        assert getattr(config.trainer, key) == getattr(alone.trainer, key)


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_weights_have_the_published_architecture(name: str) -> None:
    vocabulary, parameters = PUBLISHED[name]
    with torch.device("meta"):
        model = build(own_config(composed(f"model={name}").model, vocabulary, eos=2), name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return overrides for problems in GSM8K's original form, and for a tokenizer with a token for each byte."""
    folder = tmp_path_factory.mktemp("gsm8k")
    record = {"answer": "He has <<1+2=3>>3. Then <<3*4=12>>12.\n#### 12"}
    lines = [json.dumps({"question": f"Problem {number}?", **record}) for number in range(120)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder / "words")
    return [
        f"task.train={folder / 'train.jsonl'}", "task.test=null", "task.test_size=20", "task.validation_size=20",
        f"model.tokenizer={folder / 'words'}",
    ]  # fmt: skip


@pytest.mark.parametrize("experiment", every(3, ALL_EXPERIMENTS))
def test_every_experiment_builds_its_parts(experiment: str, gsm8k: list[str]) -> None:
    """The experiment builds its tokenizer, its data and a smaller model of its type."""
    config = composed(f"experiment={experiment}", *SMALL)
    is_gsm8k = config.task.kind == "gsm8k"
    few = (
        gsm8k
        if is_gsm8k
        else ["task.train_size=60", "task.validation_size=5", "task.test_size=5", "model.tokenizer=symbols"]
    )
    config = composed(f"experiment={experiment}", *SMALL, *few)
    config.method = config.method.hurried()
    config.model.config |= {key: value for key, value in KEPT.items() if key in config.model.config}
    parts = build_parts(config)
    assert parts.model.config.model_type == config.model.type
    longest = max(int(split.length.max()) for split in parts.data.encoded.values())
    assert parts.model.config.max_position_embeddings == max(longest, config.model.positions)


@pytest.mark.long
@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_an_arm_of_the_ablation_changes_one_thing(size: str) -> None:
    """The two sizes have the same arms."""
    names = [name.removeprefix(f"ablation_{size}_") for name in ARMS if name.startswith(f"ablation_{size}_")]
    configs = {name: flat(to_plain(composed(f"experiment=ablation_{size}_{name}"))) for name in names}
    base = configs.pop("stepwise")
    assert (base["schedule.delta"], base["schedule.smoothing"], base["method.side"]) == (8, 4.0, "left")
    assert base["schedule.reset_optimizer"] is True
    changed = {
        name: {key for key in base if config[key] != base[key] and not key.startswith("expected.")}
        for name, config in configs.items()
    }
    assert {name: keys - {"schedule.delta"} for name, keys in changed.items()} == {
        "aggressive": set(), "no_reset": {"schedule.reset_optimizer"}, "no_smoothing": {"schedule.smoothing"},
        "right_side": {"method.side"}, "no_cot": {"schedule.remove_all_beyond"},
        "explicit_cot": {"schedule.remove_at_most"},
    }  # fmt: skip
    assert changed["aggressive"] == {"schedule.delta"}


def published(experiment: str) -> tuple[Config, Linear]:
    config = composed(f"experiment={experiment}")
    assert isinstance(config.schedule, Linear)
    return config, config.schedule


@pytest.mark.parametrize("digits", [4, 5, 7, 9, 11])
def test_the_papers_multiplication_runs(digits: int) -> None:
    config, schedule = published(f"mult{digits}x{digits}_gpt2")
    assert isinstance(config.task, Multiplication)
    assert (config.task.digits, config.task.train_size, config.task.validation_size) == (digits, 808_000, 1000)
    assert (config.model.name, config.model.pretrained, config.model.dropout) == ("gpt2", True, None)
    assert (schedule.delta, schedule.smoothing, schedule.remove_all_beyond) == (8, 4.0, None)
    assert (config.optimizer.lr, config.data.batch_size, config.trainer.duration) == (5e-5, 32, "200epochs")
    assert (config.trainer.precision, config.trainer.gradient_clip_val) == ("32-true", 1.0)


@pytest.mark.parametrize(
    "model,name", [("mistral7b", "mistralai/Mistral-7B-v0.1"), ("phi3", "microsoft/Phi-3-mini-4k-instruct")]
)
def test_the_papers_gsm8k_runs(model: str, name: str) -> None:
    config, schedule = published(f"gsm8k_{model}")
    assert (config.model.name, config.model.pretrained) == (name, True)
    assert (schedule.delta, schedule.smoothing, schedule.remove_all_beyond) == (8, 4.0, 39)
    assert (config.optimizer.lr, config.trainer.duration, config.trainer.precision) == (1e-5, "80epochs", "bf16-true")
    assert (config.data.batch_size, config.trainer.accumulate_grad_batches) == (32, 2)  # 16 x 2


def test_the_small_model_anchor() -> None:
    config, schedule = published("mult4x4_gpt2_2layer")
    assert (config.model.layers, config.model.heads, config.model.width, config.model.pretrained) == (2, 4, 768, False)
    assert (config.task.train_size, config.optimizer.lr, schedule.delta) == (80_800, 5e-5, 8)  # type: ignore[attr-defined]


def test_a_preset_follows_its_name(tmp_path: Path) -> None:
    """A folder in place of a Hub name brings its tokenizer, unless another one is named."""
    config = composed("model=phi3", f"model.name={tmp_path}")
    assert config.model.tokenizer == str(tmp_path)
    assert composed("model=phi3", f"model.name={tmp_path}", "model.tokenizer=other").model.tokenizer == "other"
