"""Every causal LM type of transformers trains, decodes, is saved and loaded, or is refused in one line."""

import contextlib
import multiprocessing
import random
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers import logging as transformers_logging

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.model import LoRAConfig, ModelConfig
from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.models.architecture import build, cast_weights
from stepwise_pl.models.build import build_model, check_architecture
from stepwise_pl.models.causality import require_causal
from stepwise_pl.models.checkpoint import load_weights
from stepwise_pl.models.decoding import generate
from stepwise_pl.models.early import causal_types
from stepwise_pl.models.export import require_same_weights
from stepwise_pl.models.forward import Targets, full_pass, target_logits
from stepwise_pl.models.lora import add_adapters
from stepwise_pl.schedules.spread import ALL
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training.optimizers import build_optimizer
from tests.conftest import every

TASK = Multiplication(digits=3, min_digits=1, train_size=40)
TOKENIZER = build_tokenizer("symbols", TASK.symbols())
NEW = 12  # tokens to decode


def batches() -> tuple[CoTBatch, CoTBatch]:
    """Return a batch to train on and one to answer. Their prompts have unequal lengths."""
    examples = encode(TASK.load()["train"], TOKENIZER, "train")
    return examples.collate(np.arange(8)).remove(3), examples.collate(np.arange(6)).remove(ALL)


def plainly(model: PreTrainedModel, batch: CoTBatch) -> list[list[int]]:
    """Decode one example at a time, with a full forward pass per token."""
    eos, out = TOKENIZER.eos_token_id, []
    for row in range(len(batch)):
        tokens = batch.tokens[row][batch.part[row] == Part.PROMPT].tolist()
        prompt = len(tokens)
        while len(tokens) - prompt < NEW and tokens[prompt:].count(eos) < 2:
            tokens.append(int(full_pass(model, torch.tensor([tokens]), None, 1)[0, -1].argmax()))
        out.append(tokens[prompt:])
    return out


def written_by_transformers(model: PreTrainedModel, batch: CoTBatch) -> list[list[int]] | None:
    """Return the tokens of `model.generate` for each prompt alone; None if the type's own generate fails."""
    eos, out = TOKENIZER.eos_token_id, []
    model.generation_config = (
        GenerationConfig()
    )  # an export has these settings too; blenderbot's own ask for 20 tokens at least
    for row in range(len(batch)):
        prompt = batch.tokens[row][batch.part[row] == Part.PROMPT][None]
        asked = {
            "attention_mask": torch.ones_like(prompt),
            "do_sample": False,
            "max_new_tokens": NEW,
            "pad_token_id": eos,
        }
        try:
            new = model.generate(prompt, use_cache=False, **asked)[0, prompt.shape[1] :].tolist()
        except Exception:
            return None
        ends = [place for place, token in enumerate(new) if token == eos][:2]
        out.append(new[: ends[1] + 1] if len(ends) == 2 else new)
    return out


def follow(kind: str, folder: Path, **more: object) -> str:
    """Follow a model of this type from the check of its settings to a folder that transformers loads.

    Returns:
        Why it is refused, or what there is to tell of it.
    """
    cfg = ModelConfig(type=kind, layers=2, width=64, heads=4, positions=128, config=more)  # type: ignore[arg-type]
    train, ask = batches()
    torch.manual_seed(0)
    try:
        check_architecture(cfg)
        model = build_model(cfg, TOKENIZER, 40)
        require_causal(model, f"model.type={kind}", 40)
    except UserError as error:
        assert len(str(error)) < 700, error
        return f"refused: {error}"
    optimizer = build_optimizer(model.train(), OptimizerConfig(lr=1e-2))
    losses = []
    for _ in range(3):
        targets = Targets.of(train)
        logits = target_logits(model, targets)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert min(losses[1:]) < losses[0], losses
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    answered = generate(model, ask, TOKENIZER.eos_token_id, NEW)
    with torch.inference_mode():
        assert answered == plainly(model, ask)
        logits = full_pass(model, train.tokens, None, train.tokens.shape[1])
    # The model is saved as in a run folder, and as an export.
    model.config.save_pretrained(folder / "run")
    again = build(AutoConfig.from_pretrained(folder / "run"), kind, initialised=False)
    load_weights(again, {key: value.clone() for key, value in model.state_dict().items()}, kind)
    model.save_pretrained(folder / "export")
    try:
        require_same_weights(folder / "export", model)
    except UserError as error:
        return f"trains, but is not exported: {error}"
    exported = AutoModelForCausalLM.from_pretrained(folder / "export")
    with torch.inference_mode():
        for other in (again.eval(), exported.eval()):
            torch.testing.assert_close(full_pass(other, train.tokens, None, train.tokens.shape[1]), logits)
    return (
        "trains" if written_by_transformers(exported, ask) in (answered, None) else "trains; its own generate differs"
    )


def _followed(kind: str, folder: Path, more: dict[str, object], pipe: object) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (10 << 30, 10 << 30))
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        pipe.send(follow(kind, folder, **more))  # type: ignore[attr-defined]
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {first_line(error)}")  # type: ignore[attr-defined]


def followed(kind: str, folder: Path, seconds: float = 900, **more: object) -> str:
    """Run `follow` in another process, with bounds on time and memory."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_followed, args=(kind, folder, more, theirs))
    process.start()
    theirs.close()
    try:
        return str(ours.recv()) if ours.poll(seconds) else f"took more than {seconds} s"
    except EOFError:
        return "died"
    finally:
        process.kill()
        process.join()


# The sizes, states and positions of these types have different names, or none.
TRAIN = (
    "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "gptj", "gpt_neo", "mamba", "rwkv", "bloom", "opt", "bart",
    "mixtral", "deepseek_v3", "ministral", "falcon", "recurrent_gemma",
)  # fmt: skip


@pytest.mark.parametrize("kind", every(2, TRAIN))
def test_a_type_trains_answers_and_is_loaded_again(kind: str, tmp_path: Path) -> None:
    assert follow(kind, tmp_path) == "trains"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "roformer"])
def test_a_model_that_sees_later_tokens_is_refused_and_the_hint_works(kind: str, tmp_path: Path) -> None:
    refused = follow(kind, tmp_path)
    assert refused.startswith(f"refused: model.type={kind}: is no causal LM: a later token changes")
    assert "+model.config.is_decoder=true" in refused
    assert follow(kind, tmp_path, is_decoder=True).startswith("trains")


def test_weights_that_transformers_changes_while_it_loads_are_not_exported(tmp_path: Path) -> None:
    assert follow("youtu", tmp_path).startswith(
        "trains, but is not exported: model.type=youtu: transformers does not read"
    )


def test_a_model_of_several_names_its_part_for_text(tmp_path: Path) -> None:
    assert "model.type=gemma3_text" in follow("gemma3", tmp_path)


def test_the_check_leaves_no_trace() -> None:
    """Mode, buffers and random numbers stay, so that training goes on bit by bit as without the check."""
    model = build_model(ModelConfig(type="gpt2", layers=2, width=64, heads=4, dropout=0.1), TOKENIZER).train()
    model.base_model.h[0].eval()
    before = {name: value.clone() for name, value in (*model.named_buffers(), *model.named_parameters())}
    modes = [module.training for module in model.modules()]
    numbers = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    require_causal(model, "model.type=gpt2", 300, jumps=True)
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == numbers[1:]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in (*model.named_buffers(), *model.named_parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kind,causal", [("gpt2", True), ("llama", True), ("nanochat", True), ("bert", False), ("roberta", False)]
)
def test_causality_is_checked_in_every_precision_and_with_adapters(kind: str, causal: bool, dtype: torch.dtype) -> None:
    model = build_model(ModelConfig(type=kind, layers=2, width=64, heads=4), TOKENIZER)
    cast_weights(model, dtype)
    for adapters in (False, True):
        if adapters:
            add_adapters(model, LoRAConfig(rank=2))
        with contextlib.nullcontext() if causal else pytest.raises(UserError, match="is no causal LM"):
            require_causal(model, f"model.type={kind}", 40)


def test_layers_that_start_at_zero_do_not_hide_that_later_tokens_are_seen() -> None:
    model = build_model(ModelConfig(type="bert", layers=2, width=64, heads=4), TOKENIZER)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight.zero_()
    with pytest.raises(UserError, match="is no causal LM"):
        require_causal(model, "model.type=bert", 40)


def test_positions_that_jump_are_refused_if_a_model_takes_none() -> None:
    model = build_model(ModelConfig(type="mamba", layers=2, width=64, heads=4), TOKENIZER)
    require_causal(model, "model.type=mamba", 40)
    with pytest.raises(UserError, match="keep_position=true: a mamba cannot be told the positions"):
        require_causal(model, "model.type=mamba", 40, jumps=True)


def test_a_cache_is_used_exactly_if_it_changes_nothing() -> None:
    """One prompt is longer than the window of attention. The number of full passes tells whether the cache was used."""
    _, ask = batches()
    for kind, cached in (("gpt2", True), ("mistral", True), ("mamba", False), ("bloom", True)):
        torch.manual_seed(0)
        window = {"sliding_window": 4} if kind == "mistral" else {}
        model = build_model(ModelConfig(type=kind, layers=2, width=64, heads=4, config=window), TOKENIZER, 40).eval()
        widths: list[int] = []
        model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: widths.append(inputs[0].shape[1]))  # noqa: B023
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        generate(model, ask, TOKENIZER.eos_token_id, NEW)
        widths.clear()
        answered = generate(model, ask, TOKENIZER.eos_token_id, NEW)
        assert (1 in widths) is cached, kind
        with torch.inference_mode():
            assert answered == plainly(model, ask)


@pytest.mark.longest
@pytest.mark.timeout(3600)  # some hundred types
@pytest.mark.long
def test_every_type_of_transformers_trains_or_is_refused_in_one_line(tmp_path: Path) -> None:
    found = {kind: followed(kind, tmp_path / kind) for kind in sorted(causal_types())}
    print("\n".join(f"{kind:28s} {outcome}" for kind, outcome in found.items()))  # noqa: T201
    wrong = {kind: outcome for kind, outcome in found.items() if not outcome.startswith(("trains", "refused: "))}
    assert not wrong
    assert sum(outcome.startswith("trains") for outcome in found.values()) > 120
