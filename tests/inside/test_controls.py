"""The controls: a model with random weights, and the tokens that have been read."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from stepwise_pl.common.statistics import wilson
from stepwise_pl.inside.controls import RawTokens, one_hot
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.subject import Subject
from stepwise_pl.inside.untrained import untrained
from stepwise_pl.models.trained_run import load_run
from stepwise_pl.probe import probe
from stepwise_pl.reporting.probe_text import findings
from tests.conftest import SMALL, command
from tests.inside.conftest import MODULAR
from tests.inside.test_probe import config
from tests.methods.test_methods import needed


@pytest.mark.parametrize("kind", ["stepwise", "coconut", "codi", "icot_kd"])
def test_the_random_control_has_fresh_weights_everywhere(kind: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command("train", *SMALL, *needed(kind, tmp_path), "trainer.duration=12steps", "optimizer.decay=0", f"run_dir={run}")
    trained = load_run(str(run), "last")
    one, other = untrained(trained), untrained(trained)
    for name in ("model", "extra", "tokens"):
        module = getattr(trained, name)
        assert (module is None) == (getattr(one, name) is None)
        for key, weight in () if module is None else module.state_dict().items():
            fresh = getattr(one, name).state_dict()[key]
            assert fresh.shape == weight.shape and fresh.dtype == weight.dtype
            assert torch.equal(fresh, getattr(other, name).state_dict()[key])
            # Norms and biases begin as constants, also the fresh ones.
            if weight.ndim > 1:
                assert not torch.equal(fresh, weight), key
    assert not one.model.training and one.config is trained.config
    # A third one takes the memory of the run's own weights.
    third = untrained(trained, instead=True)
    assert {weight.device.type for weight in trained.model.parameters()} == {"meta"}
    assert third.model.device.type == "cpu"
    for key, weight in third.model.state_dict().items():
        assert torch.equal(weight, one.model.state_dict()[key])


def test_adapters_and_the_model_below_them_are_fresh_in_the_random_control(run_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    command("export", f"run={run_folder}", "checkpoint=removed-6", f"out={tmp_path / 'base'}")
    lora = ("model.lora.rank=2", f"model.init_from={tmp_path / 'base'}", f"run_dir={tmp_path / 'lora'}")
    command("train", *MODULAR, *lora, f"model.tokenizer={tmp_path / 'base'}", "trainer.duration=4steps")
    trained = load_run(str(tmp_path / "lora"), "last")
    fresh = untrained(trained).model.state_dict()
    base = {
        key.replace(".base_layer", ""): weight
        for key, weight in trained.model.state_dict().items()
        if ".lora_" not in key
    }
    assert fresh.keys() == base.keys()
    assert all(not torch.equal(fresh[key], base[key]) for key in base if base[key].ndim > 1)
    rows = probe(config(tmp_path / "lora", targets=["cot 5"]))[str(tmp_path / "lora")]
    assert {row.source for row in rows} >= {"trained", "random"}


def test_a_model_without_training_holds_nothing_beyond_its_controls(run_folder: Path) -> None:
    """The weights become random, of another seed than those of the control.

    Two 95% intervals around the same value are apart if the difference of the estimates is more than 2 · 1.96 standard errors
    of one, that is 2.77 of their difference: with probability 0.003 that the first is the higher. So one of 8 comparisons is with
    probability below 0.03, and the numbers are the same at every call.
    """
    path = run_folder / "checkpoints" / "removed-3.ckpt"
    state = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(5)
    weights = untrained(load_run(str(run_folder), str(path))).model.state_dict()
    for key, weight in weights.items():
        if weight.ndim > 1:
            order = torch.randperm(weight.numel(), generator=generator)
            weights[key] = weight.flatten()[order].reshape(weight.shape)
    state["state_dict"] = {f"model.{key}": weight for key, weight in weights.items()}
    state["stepwise"].pop("average", None)
    torch.save(state, path)
    rows = probe(config(run_folder, checkpoint="removed-3", mlp="chosen"))[str(run_folder)]
    found = findings(rows)
    assert len(found) == 8 and not [finding for finding in found if finding.is_beyond]
    shuffled = [row for row in rows if row.source == "shuffled" and row.chosen]
    assert len(shuffled) == 8
    for row in shuffled:
        # At 3.5 standard errors one of 8 is above chance with probability 0.002.
        is_chance = wilson(row.score, row.num_scored, z=3.5)[0] < 1 / 3 if row.kind == "class" else row.score < 0
        assert is_chance, row


def test_tokens_that_were_read_are_those_of_the_view(run_folder: Path) -> None:
    """The prompts have 3 to 6 digits here; CoT and answer follow."""
    folder = run_folder.parent / "lengths"
    words = [word for word in MODULAR if not word.startswith("trainer.duration")]
    command("train", *words, "task.min_terms=3", "trainer.duration=2steps", "optimizer.decay=0", f"run_dir={folder}")
    run = load_run(str(folder), "last")
    texts = run.config.task.load()["train"].slice(0, 60)
    subject = dataclasses.replace(Subject.of(run, texts), stage=1)
    places = [Place("prompt", -2), Place("prompt", -1), Place("cot", 1), Place("answer", 1)]
    raw = RawTokens(subject, places, 16)
    words_of = {place: raw.read(place) for place in places}
    # From the beginning as many columns as the longest example has tokens, and as many backwards.
    longest = {place: found.shape[1] // 2 for place, found in words_of.items()}
    eos = str(run.tokenizer.eos_token)
    for row, text in enumerate(texts):
        cot = text.cot.split()[1:]  # the first token is gone
        prompt = [*text.prompt.split(), eos]
        read = {
            places[0]: prompt[:-1], places[1]: prompt, places[2]: [*prompt, cot[0]], places[3]: [*prompt, *cot, eos, "####"],
        }  # fmt: skip
        for place, expected in read.items():
            forwards, backwards = np.split(words_of[place][row], [longest[place]])
            shown = [str(run.tokenizer.decode([token])) for token in forwards if token >= 0]
            assert shown == expected, place
            assert (forwards[len(expected) :] == -1).all() and (backwards[len(expected) :] == -1).all()
            assert [token for token in backwards if token >= 0] == forwards[: len(expected)][::-1].tolist()


def test_one_hot_tokens_have_a_column_for_each_token_at_each_position() -> None:
    tokens = np.array([[1, 7, 5], [2, 7, 5], [1, 7, 6], [3, 8, 6]])
    found = one_hot(tokens, 3).toarray()
    # Position 1 is constant in the problems to fit, and token 3 is in none of them.
    assert found.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 1]]
    assert one_hot(np.ones((4, 2), np.int64), 3).toarray().tolist() == [[0]] * 4


def test_a_position_at_which_every_token_is_rare_has_no_column() -> None:
    """As the numbers of problems, if each is a token of its own. Of 3,000 problems a token must be in three."""
    numbers = np.arange(3000)
    found = one_hot(np.stack([numbers, numbers % 2], axis=1), 3000).toarray()
    assert found.tolist() == [[1, 0] if number % 2 == 0 else [0, 1] for number in numbers]
    assert one_hot(numbers[:, None], 3000).toarray().tolist() == [[0]] * 3000
