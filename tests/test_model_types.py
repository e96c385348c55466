"""Every type of causal LM that transformers has: trains, decodes, is saved and loaded, or is refused in one line."""

import multiprocessing
import resource
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import logging as transformers_logging

from stepwise_pl.architecture import build
from stepwise_pl.batch import CoTBatch, Part
from stepwise_pl.causality import require_causal
from stepwise_pl.config import ModelConfig, OptimizerConfig
from stepwise_pl.decoding import Targets, full_pass, generate, target_logits
from stepwise_pl.errors import UserError
from stepwise_pl.metrics import token_sums
from stepwise_pl.models import build_model, check_architecture, load_weights
from stepwise_pl.optimizers import build_optimizer
from stepwise_pl.removal import REMOVE_ALL, remove
from stepwise_pl.tasks import Multiplication
from stepwise_pl.tokenizing import build_tokenizer, encode

TASK = Multiplication(digits=3, min_digits=1, train_size=40)
TOKENIZER = build_tokenizer("symbols", TASK.symbols())
NEW = 12  # tokens to decode


def batches() -> tuple[CoTBatch, CoTBatch]:
    """One to train on and one to answer, whose prompts are of unequal length."""
    examples = encode(TASK.load()["train"], TOKENIZER, "train")
    return remove(examples.collate(np.arange(8)), 3), remove(examples.collate(np.arange(6)), REMOVE_ALL)


def plainly(model: PreTrainedModel, batch: CoTBatch) -> list[list[int]]:
    """One example and one full forward pass per token."""
    eos, out = TOKENIZER.eos_token_id, []
    for row in range(len(batch)):
        tokens = batch.tokens[row][batch.part[row] == Part.PROMPT].tolist()
        prompt = len(tokens)
        while len(tokens) - prompt < NEW and tokens[prompt:].count(eos) < 2:
            tokens.append(int(full_pass(model, torch.tensor([tokens]), None, 1)[0, -1].argmax()))
        out.append(tokens[prompt:])
    return out


def by_transformers(model: PreTrainedModel, batch: CoTBatch) -> list[list[int]]:
    """What `model.generate` makes of each prompt alone."""
    eos, out = TOKENIZER.eos_token_id, []
    model.generation_config.eos_token_id = None
    for row in range(len(batch)):
        prompt = batch.tokens[row][batch.part[row] == Part.PROMPT][None]
        new = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW, pad_token_id=eos
        )[0, prompt.shape[1] :].tolist()
        ends = [place for place, token in enumerate(new) if token == eos][:2]
        out.append(new[: ends[1] + 1] if len(ends) == 2 else new)
    return out


def follow(kind: str, folder: Path, **more: object) -> str:
    """A model of this type from the check of its settings to a folder that transformers loads.

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
        sums = token_sums(target_logits(model, targets), targets.label)
        loss = sums.loss / sums.targets
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] < 6, losses
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    answered = generate(model, ask, TOKENIZER.eos_token_id, NEW)
    with torch.inference_mode():
        assert answered == plainly(model, ask)
        logits = full_pass(model, train.tokens, None, train.tokens.shape[1])
    # As a run folder keeps it, and as an export does.
    model.config.save_pretrained(folder / "run")
    again = build(AutoConfig.from_pretrained(folder / "run"), kind, initialised=False)
    load_weights(again, {key: value.clone() for key, value in model.state_dict().items()}, kind)
    model.save_pretrained(folder / "export")
    exported = AutoModelForCausalLM.from_pretrained(folder / "export")
    with torch.inference_mode():
        for other in (again.eval(), exported.eval()):
            torch.testing.assert_close(full_pass(other, train.tokens, None, train.tokens.shape[1]), logits)
    return "trains" + (
        "" if by_transformers(exported, ask) == answered else ", but transformers' own generate says otherwise"
    )


def _followed(kind: str, folder: Path, more: dict[str, object], pipe: object) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (10 << 30, 10 << 30))
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        pipe.send(follow(kind, folder, **more))  # type: ignore[attr-defined]
    except BaseException as error:
        import traceback

        pipe.send(
            f"{type(error).__name__}: {str(error)[:300]} AT "
            + "; ".join(
                str(f.filename)[-40:] + ":" + str(f.lineno) for f in traceback.extract_tb(error.__traceback__)[-4:]
            )
        )  # type: ignore[attr-defined]


def followed(kind: str, folder: Path, seconds: float = 120, **more: object) -> str:
    """`follow` in a process of its own, with bounds on time and memory."""
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
