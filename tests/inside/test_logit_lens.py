"""The logit lens: the last layer gives the model's own logits, the others those of its norm and output embedding."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.batch import Part
from stepwise_pl.inside.logit_lens import Unembedding, grids, lens_rows
from stepwise_pl.inside.places import Place, columns, places_of
from stepwise_pl.inside.states import States, write_states
from stepwise_pl.inside.subject import Subject
from stepwise_pl.inside.tokens import copies, digit_tokens, gone, looked_for, targets_at
from stepwise_pl.methods import Coconut, ICoTKD, Method, Stepwise
from tests.inside.looking import KINDS, PRODUCTS, subject

WHERE = ("removed-1", 1, 1)
NORMS = {"gpt2": "transformer.ln_f", **dict.fromkeys(KINDS[1:], "model.norm")}


def states_of(one: Subject, folder: Path) -> States:
    places = places_of(one.batches(100), one.side, None)
    return write_states(one, places, range(one.num_layers + 1), folder / "states", 7)


def logits_by_hand(one: Subject, row: int, layer: int) -> torch.Tensor:
    """The lens on one problem, read alone with transformers, with the norm by its name; [seq, vocabulary]."""
    for whole, view in one.batches(100):
        if row in whole.draw.tolist():
            alone = view.row(whole.draw.tolist().index(row))
    model = one.learner.model
    out = model(input_ids=alone.tokens, output_hidden_states=True)
    norm = model.get_submodule(NORMS[model.config.model_type])
    if layer == one.num_layers:
        return out.logits[0]
    return model.get_output_embeddings()(norm(out.hidden_states[layer][0]))  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_gives_the_models_own_logits_and_the_others_go_through_norm_and_output(
    kind: str, tmp_path
) -> None:
    one = subject(kind, stage=1, task=PRODUCTS)
    states = states_of(one, tmp_path)
    unembedding = Unembedding.of(one.learner.model)
    assert unembedding.norm is one.learner.model.get_submodule(NORMS[kind])
    column = {place: torch.zeros(len(one.texts), dtype=torch.long) for place in states.places}
    for whole, view in one.batches(9):
        for place in states.places:
            column[place][whole.draw] = columns(place, view, whole)
    with torch.inference_mode():
        for row in (0, 7, 29):
            for layer in range(one.num_layers + 1):
                expected = logits_by_hand(one, row, layer)
                for place in states.places:
                    found = unembedding.logits(torch.from_numpy(states.at(place, layer))[row : row + 1], layer)
                    torch.testing.assert_close(found[0], expected[column[place][row]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind,config", [("granite", {"logits_scaling": 4.0}), ("gemma2", {})])
def test_a_model_that_does_more_to_its_logits_is_refused_in_one_line(kind: str, config: dict[str, float]) -> None:
    model = subject(kind, config=config).learner.model
    with pytest.raises(
        UserError, match=f"a {kind} does more to its logits than its output embedding does; there is no lens"
    ):
        Unembedding.of(model)


def test_a_model_without_a_norm_behind_its_blocks_is_refused_in_one_line() -> None:
    """An OPT that projects its states to the width of its words does so behind its norm."""
    model = subject("opt", config={"word_embed_proj_dim": 16}).learner.model
    with pytest.raises(
        UserError, match="a opt has no final norm behind its last block that the lens could read; there is no lens"
    ):
        Unembedding.of(model)


def test_other_types_with_a_plain_head_need_no_entry() -> None:
    one = subject("gpt_neox")
    assert Unembedding.of(one.learner.model).norm is one.learner.model.get_submodule("gpt_neox.final_layer_norm")


def test_the_rows_are_counted_as_by_hand(tmp_path) -> None:
    one = subject(stage=2)
    states = states_of(one, tmp_path)
    tokens = looked_for(one, 32)
    assert list(map(str, tokens)) == ["cot 0", "cot 1", "cot 2", "cot 3", "answer 0", "answer 1", "answer 2"]
    rows = {(row.layer, row.place, row.token): row for row in lens_rows(one, states, tokens, WHERE, "trained")}
    cot = [[int(word) for word in text.cot.split()] for text in one.texts]
    ids = {digit: one.tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(5)}
    for layer, place, token in ((1, "prompt -1", 0), (2, "prompt -1", 1), (0, "cot 2", 3), (2, "cot 3", 2)):
        said, shares = [], []
        for row in range(len(one.texts)):
            read = next(c for c, name in enumerate(named(one, row)) if name == place)
            share = logits_by_hand(one, row, layer)[read].softmax(-1)
            said.append(int(share.argmax()))
            shares.append(float(share[ids[cot[row][token]]]))
        wanted = [ids[each[token]] for each in cot]
        found = rows[layer, place, f"cot {token}"]
        assert found.top == pytest.approx(sum(map(int.__eq__, said, wanted)) / len(said))
        assert found.probability == pytest.approx(sum(shares) / len(shares), rel=1e-4)
        pairs = [word == other for word in said for other in wanted]
        assert found.chance == pytest.approx(sum(pairs) / len(pairs))
        assert (found.problems, found.checkpoint, found.removed_tokens) == (60, "removed-1", 1)
    # What the model has to say: the token that stands two further on, because two are gone.
    assert rows[2, "prompt -1", "next"].top == rows[2, "prompt -1", "cot 2"].top
    assert rows[2, "cot 3", "next"].probability == rows[2, "cot 3", "answer 0"].probability
    assert (1, "prompt -2", "next") not in rows and (1, "prompt -2", "cot 0") in rows


def named(one: Subject, row: int) -> list[str]:
    """The places of a problem of `SUMS` at stage 2, column by column."""
    words = len(one.texts[row].prompt.split())
    return [
        *(f"prompt {number}" for number in range(-1 - words, 0)),
        "cot 2",
        "cot 3",
        "answer 0",
        "answer 1",
        "answer 2",
    ]


def test_a_planted_token_is_found_where_it_is(tmp_path) -> None:
    """The embedding of a gone token is added to the state at one place and layer; the lens finds it there and not elsewhere."""
    one = subject(stage=2)
    states = states_of(one, tmp_path)
    model = one.learner.model
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(torch.linalg.qr(torch.randn(32, model.config.vocab_size)).Q.T)
        model.transformer.ln_f.weight.fill_(1.0)
        model.transformer.ln_f.bias.zero_()
        tokens = torch.tensor([one.tokenizer.convert_tokens_to_ids(text.cot.split()[0]) for text in one.texts])
        planted = model.get_output_embeddings().weight[tokens].numpy() * 1000
    mapped = np.memmap(states.file, np.float32, "r+", shape=states.shape)
    mapped[states.places.index(Place("prompt", -1)), 1] += planted
    mapped.flush()
    rows = lens_rows(one, states, [Place("cot", 0)], WHERE, "trained")
    best = [row for row in rows if row.token == "cot 0" and row.top == 1]
    assert [(row.layer, row.place) for row in best] == [(1, "prompt -1")]
    assert best[0].chance < 0.3


def test_the_tokens_that_are_gone_and_those_that_stand_twice() -> None:
    one = subject(stage=2)
    tokens = looked_for(one, 32)
    assert gone(one, tokens) == [Place("cot", 0), Place("cot", 1)]
    assert gone(subject(method=Stepwise(side="right"), stage=1), tokens) == [Place("cot", 3)]
    # The first running sum is the first digit, the last one is the answer.
    assert copies(one, tokens) == {
        Place("cot", 0): [Place("prompt", -5)], Place("cot", 3): [Place("answer", 2)], Place("answer", 2): [Place("cot", 3)],
    }  # fmt: skip
    assert [str(place) for place in looked_for(one, 3)] == ["cot 0", "cot 3", "answer 2"]
    assert len(looked_for(one, 1)) == 1


def test_the_digits_are_those_of_the_problems() -> None:
    one = subject()
    assert digit_tokens(one) == [one.tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(5)]
    assert len(digit_tokens(subject(task=PRODUCTS))) == 10


@pytest.mark.parametrize(
    "method", [Stepwise(), Stepwise(tell_stage=True), Coconut(unit="token", thoughts=2), Stepwise(side="right")]
)
def test_the_grid_shows_every_token_of_a_problem(method: Method) -> None:
    one = subject(method=method, stage=1)
    shown = grids(one, WHERE, 7)
    assert [grid.problem for grid in shown] == list(range(len(one.texts)))
    views = {row: view.row(place) for whole, view in one.batches(100) for place, row in enumerate(whole.draw.tolist())}
    for grid in shown[:5]:
        view, text = views[grid.problem], one.texts[grid.problem]
        assert (grid.prompt, grid.cot, grid.answer) == text[:3]
        assert grid.layers == [0, 1, 2] and len(grid.places) == view.tokens.shape[1] - 1
        written = [one.tokenizer.decode([token]) if token >= 0 else None for token in view.tokens[0].tolist()]
        for column, (read, following) in enumerate(zip(grid.read, grid.next, strict=True)):
            for text_of, token in ((read, written[column]), (following, written[column + 1])):
                assert text_of == token if token is not None else text_of.startswith("[")
        parts = [Part(part).name.lower() for part in view.part[0].tolist()[:-1]]
        assert [place.split()[0] for place in grid.places] == parts
        scored = one.learner.score(view)
        said = {int(column) - 1: int(word) for column, word in zip(scored.column, scored.predicted, strict=True)}
        assert all(grid.words[2][column] == one.tokenizer.decode([word]) for column, word in said.items())
        assert all(0 < share <= 1 for layer in grid.probabilities for share in layer)
    if method.side == "left":
        assert "cot 0" not in shown[0].places and "cot 1" in shown[0].places
    else:
        assert "cot 0" in shown[0].places and "cot 3" not in shown[0].places


def test_the_lens_reads_the_states_that_an_emulator_puts_in() -> None:
    one = subject(method=ICoTKD(teacher="random"), stage=2)
    unembedding = Unembedding.of(one.learner.model)
    whole, view = next(one.batches(5))
    given = one.learner.method.prompt_states(one.learner, view)
    assert given is not None
    grid = grids(one, WHERE, 100)[int(whole.draw[0])]
    at = grid.places.index("prompt -1")
    for layer in (0, 1):
        word = int(unembedding.logits(given[layer, :1].detach(), layer).argmax())
        assert grid.words[layer][at] == one.tokenizer.decode([word])


def test_what_has_to_be_said_is_nothing_inside_of_prompts_and_thoughts() -> None:
    one = subject(method=Coconut(unit="token", thoughts=2), stage=1)
    places = places_of(one.batches(100), one.side, None)
    found = dict(zip(map(str, places), targets_at(one, places), strict=True))
    assert bool((found["prompt -1"] == -1).all()) and bool((found["thought 0"] == -1).all())
    last = max(place for place in places if place.part == "thought")
    words = [one.tokenizer.convert_tokens_to_ids(text.cot.split()[1]) for text in one.texts]
    assert found[str(last)].tolist() == words
