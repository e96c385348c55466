"""Methods that read inputs that are no words, against a naive reference: one example at a time, no cache, no padding."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.methods import LATENT, Coconut, Codi, Losses, Method, Pause, SimCoT, Stepwise, own
from stepwise_pl.models import decoding, static_rows
from stepwise_pl.models.build import build_model
from stepwise_pl.models.decoding import _exact_up_to
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.own import own_modules
from stepwise_pl.models.readability import require_readable
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks import Multiplication
from tests.conftest import command

TASK = Multiplication(digits=3, min_digits=1, train_size=64, validation_size=10, test_size=10)
BEGIN, END = own(0), own(1)
KINDS = ("gpt2", "llama", "mistral", "phi3", "qwen2", "gpt_neox")  # the last has no plain head here
ROWS = 10


@pytest.fixture(scope="module")
def examples() -> EncodedExamples:
    return encode(TASK.load()["train"], build_tokenizer("symbols", TASK.symbols()), "train", by_step=True)


@pytest.fixture
def batch(examples: EncodedExamples) -> CoTBatch:
    rows = np.argsort(examples.length)[np.linspace(0, len(examples) - 1, ROWS).astype(int)]
    found = examples.collate(np.random.default_rng(0).permutation(rows))
    for part in (Part.PROMPT, Part.COT):
        assert len(set(found.length_of(part).tolist())) > 1
    return found


def made(tokenizer: Any, method: Method, examples: EncodedExamples, kind: str = "gpt2") -> Learner:
    """A learner with random weights; no module of the method is as it was made."""
    torch.manual_seed(0)
    config = {"initializer_range": 0.3} if kind in ("gpt2", "gpt_neox") else {}
    shape = ModelConfig(type=kind, layers=2, heads=2, width=16, config=config, dropout=0.0)
    model = build_model(shape, tokenizer, 128).eval()
    limits = Limits.of({"train": examples}, "left")
    method.prepare(model, tokenizer, 64)
    extra, tokens = own_modules(method, model, limits, 0)
    for parameter in extra.parameters() if extra is not None else ():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return Learner(model, int(tokenizer.eos_token_id), method, None if extra is None else extra.eval(), tokens)


def parts_of(batch: CoTBatch, row: int) -> tuple[list[int], list[list[int]], list[int]]:
    """Return prompt, steps of the CoT, and answer of an example."""
    tokens, part = batch.tokens[row].tolist(), batch.part[row].tolist()
    steps: list[list[int]] = []
    for column, token in enumerate(tokens):
        if part[column] == Part.COT:
            if batch.unit_start[row, column]:
                steps.append([])
            steps[-1].append(token)
    return [t for t, p in zip(tokens, part, strict=True) if p == Part.PROMPT], steps, [
        t for t, p in zip(tokens, part, strict=True) if p == Part.ANSWER
    ]  # fmt: skip


def by_hand(learner: Learner, ids: list[int], model: Any = None, given: list[Tensor] | None = None) -> Any:
    """Read ids one after the other: a full pass for every thought, and a last one. Return its output, and the thoughts."""
    model = model or learner.model
    vectors: list[Tensor] = []
    thoughts: list[Tensor] = []
    for number in ids:
        if number >= 0:
            vectors.append(model.get_input_embeddings().weight[number])
        elif number == LATENT:
            if given is None:
                read = model.base_model(inputs_embeds=torch.stack(vectors)[None]).last_hidden_state[0, -1]
                if isinstance(learner.method, Codi):
                    first, _, second, norm = learner.extra  # type: ignore[misc]
                    read = F.layer_norm(
                        second.weight @ F.gelu(first.weight @ read + first.bias) + second.bias, [len(read)], norm.weight,
                        norm.bias,
                    )  # fmt: skip
                thoughts.append(read)
            vectors.append(thoughts[-1] if given is None else given.pop(0))
        else:
            vectors.append(learner.tokens.weight[-2 - number])  # type: ignore[union-attr]
    return model(inputs_embeds=torch.stack(vectors)[None], output_hidden_states=True), thoughts


def cross_entropy(logits: Tensor, ids: list[int], first: int) -> Tensor:
    """Return the cross entropy of ids from place `first` on, [targets]."""
    return torch.stack([-logits[0, place - 1].log_softmax(-1)[ids[place]] for place in range(first, len(ids))])


def coconut(method: Coconut | SimCoT, stage: int, last: int) -> Callable[[Any], tuple[list[int], list[list[int]]]]:
    """Return what stands between prompt and answer: the inputs, and the steps that are left."""

    def of(steps: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        count = method.thoughts * min(stage, last, method.stages if method.stages is not None else 99)
        return ([BEGIN, *[LATENT] * count, END] if method.thoughts else []), ([] if stage >= last else steps[stage:])

    return of


def pauses(method: Pause, stage: int, last: int) -> Callable[[Any], tuple[list[int], list[list[int]]]]:
    def of(steps: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        return [own(0)] * (method.tokens + method.thoughts * min(stage, last)), [] if stage >= last else steps[stage:]

    return of


def told(method: Stepwise, stage: int, last: int) -> Callable[[Any], tuple[list[int], list[list[int]]]]:
    return lambda steps: ([own(min(stage, last))], [] if stage >= last else steps[stage:])


CASES: dict[str, tuple[Callable[[], Method], Any]] = {
    "coconut": (lambda: Coconut(thoughts=2), coconut),
    "coconut with few stages": (lambda: Coconut(thoughts=1, stages=1), coconut),
    "coconut without thought": (lambda: Coconut(thoughts=0), coconut),
    "sim_cot": (lambda: SimCoT(thoughts=2), coconut),
    "sim_cot with few stages": (lambda: SimCoT(thoughts=1, stages=1), coconut),
    "pause": (lambda: Pause(unit="step", tokens=3), pauses),
    "pause as thought": (lambda: Pause(unit="step", tokens=0, thoughts=2), pauses),
    "stepwise that is told its stage": (lambda: Stepwise(unit="step", tell_stage=True), told),
}


def stages(learner: Learner, examples: EncodedExamples) -> Stage:
    """All stages, and one beyond the last, in one batch."""
    last = learner.method.last_stage(Limits.of({"train": examples}, "left"))
    return Stage(1, last, np.arange(ROWS) % (last + 2))


def step_loss(learner: Learner, steps: list[list[int]], thoughts: list[Tensor], stage: int, last: int) -> Tensor:
    """Return the cross entropy of the decoder, the mean over the steps that thoughts stand for."""
    method = learner.method
    assert isinstance(method, SimCoT)
    size = method.thoughts
    losses = []
    for group in range(len(thoughts) // size):
        is_rest = stage >= last and group == len(thoughts) // size - 1
        text = sum(steps[group:], []) if is_rest else (steps[group] if group < len(steps) else [])
        if text:
            ids = [*[LATENT] * size, *text, learner.eos]
            out, _ = by_hand(learner, ids, learner.extra["decoder"], thoughts[group * size : (group + 1) * size])  # type: ignore[index]
            losses.append(cross_entropy(out.logits, ids, size).sum())
    return torch.stack(losses).mean() if losses else torch.zeros(())


def gradients(learner: Learner, loss: Tensor) -> list[Tensor | None]:
    """Return the gradients of all weights, and clear them."""
    modules = [module for module in (learner.model, learner.extra, learner.tokens) if module is not None]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    loss.backward()  # type: ignore[no-untyped-call]
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def total(losses: Losses) -> Tensor:
    assert losses.scored is not None
    return losses.scored.loss + sum(losses.more.values())


def require_equal(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert any(gradient is not None and bool(gradient.any()) for gradient in expected)
    for ours, theirs in zip(found, expected, strict=True):
        # A weight without any use may have no gradient, or one of zeros.
        shape = next((gradient for gradient in (ours, theirs) if gradient is not None), torch.zeros(()))
        ours, theirs = (torch.zeros_like(shape) if gradient is None else gradient for gradient in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_reference(case: str, tokenizer, examples, batch: CoTBatch) -> None:
    make, inputs_of = CASES[case]
    learner = made(tokenizer, make(), examples)
    stage = stages(learner, examples)
    losses = learner.method.loss(learner, batch, stage)
    found = gradients(learner, total(losses))
    written = decoded = torch.zeros(())
    assert stage.each is not None
    for row, number in enumerate(stage.each.tolist()):
        prompt, steps, answer = parts_of(batch, row)
        inputs, left = inputs_of(learner.method, number, stage.last)(steps)
        ids = [*prompt, *inputs, *sum(left, []), *answer]
        out, thoughts = by_hand(learner, ids)
        written = written + cross_entropy(out.logits, ids, len(prompt) + len(inputs)).sum()
        if "sim_cot" in case and thoughts:
            decoded = decoded + step_loss(learner, steps, thoughts, number, stage.last)
    assert losses.scored is not None
    torch.testing.assert_close(losses.scored.loss, written, rtol=1e-5, atol=1e-4)
    if "sim_cot" in case:
        torch.testing.assert_close(losses.more["decoder"], decoded, rtol=1e-5, atol=1e-4)
        assert decoded > 0
    require_equal(found, gradients(learner, written + decoded))


def test_the_losses_of_codi_are_those_of_the_reference(tokenizer, examples, batch: CoTBatch) -> None:
    learner = made(tokenizer, Codi(thoughts=3, weight=0.7), examples)
    losses = learner.method.loss(learner, batch, Stage(0, 0))
    found = gradients(learner, total(losses))
    student = teacher = distance = torch.zeros(())
    for row in range(ROWS):
        prompt, steps, answer = parts_of(batch, row)
        ids = [*prompt, BEGIN, *[LATENT] * 3, END, *answer]
        ours, _ = by_hand(learner, ids)
        student = student + cross_entropy(ours.logits, ids, len(prompt) + 5).sum()
        whole = [*prompt, *sum(steps[:-1], []), *answer]  # without the last step
        theirs, _ = by_hand(learner, whole)
        teacher = teacher + cross_entropy(theirs.logits, whole, len(prompt)).mean()
        layers = []
        for state, wanted in zip(ours.hidden_states, theirs.hidden_states, strict=True):
            # The answer's part is separator, mark, digits, end: the mark predicts the first digit.
            state, wanted = state[0, len(ids) - len(answer) + 1], wanted[0, len(whole) - len(answer) + 1].detach()
            layers.append(F.smooth_l1_loss(state, wanted) / wanted.std())
        distance = distance + 0.7 * torch.stack(layers).mean()
    assert losses.scored is not None
    torch.testing.assert_close(losses.scored.loss, student, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(losses.more["teacher"], teacher, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(losses.more["distance"], distance, rtol=1e-5, atol=1e-4)
    require_equal(found, gradients(learner, student + teacher + distance))


def greedy(learner: Learner, ids: list[int], most: int) -> list[int]:
    """Return the tokens that the reference writes after ids, up to the second end token."""
    new: list[int] = []
    while len(new) < most and new.count(learner.eos) < 2:
        out, _ = by_hand(learner, [*ids, *new])
        new.append(int(out.logits[0, -1].argmax()))
    return new


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["coconut", "pause as thought", "codi"])
@torch.no_grad()
def test_scores_and_answers_are_those_of_the_reference(
    case: str, kind: str, tokenizer, examples, batch: CoTBatch
) -> None:
    method = Codi(thoughts=2) if case == "codi" else CASES[case][0]()
    learner = made(tokenizer, method, examples, kind)
    stage = Stage(0, 0) if case == "codi" else stages(learner, examples)
    view = method.view(learner, batch, stage)
    scored = learner.score(view)
    accepted = torch.arange(ROWS) % 3
    answers = learner.generate(view, 10)
    after = learner.generate(view, 10, accepted)
    for row in range(ROWS):
        alone = view.row(row)
        ids = alone.tokens[0].tolist()
        first = int(alone.num_given[0])
        out, _ = by_hand(learner, ids)
        expected = out.logits[0, first - 1 : -1]
        torch.testing.assert_close(scored.logits[scored.row == row], expected, rtol=1e-3, atol=1e-3)
        assert answers[row] == greedy(learner, ids[:first], 10)
        known = ids[: first + int(accepted[row])]
        assert after[row] == [*known[first:], *greedy(learner, known, 10 - int(accepted[row]))][: len(after[row])]
        assert len(after[row]) == 10 or after[row].count(learner.eos) == 2
    assert min(_exact_up_to[learner.model].values()) > 0  # with the cache


@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_fixed_shape_write_the_same(
    case: str, tokenizer, examples, batch: CoTBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_rows, "BACKEND", "eager")
    torch._dynamo.reset()
    learner = made(tokenizer, CASES[case][0](), examples)
    view = learner.method.view(learner, batch, stages(learner, examples))
    for accepted in (None, torch.arange(ROWS) % 3):
        expected = learner.generate(view, 10, accepted)
        with monkeypatch.context() as patch:
            patch.delattr(decoding, "Cached")  # no other rows are allowed
            learner.decodes_compiled = True
            assert learner.generate(view, 10, accepted) == expected
        learner.decodes_compiled = False
    assert min(decoding._static_exact_up_to[learner.model].values()) > 0


@pytest.mark.parametrize("case", CASES)
def test_an_example_scores_the_same_alone_and_in_any_batch(case: str, tokenizer, examples, batch: CoTBatch) -> None:
    learner = made(tokenizer, CASES[case][0](), examples)
    view = learner.method.view(learner, batch, stages(learner, examples))
    whole = learner.score(view)
    for rows in ([3], [8, 0, 5]):
        some = CoTBatch.stack([view.row(row) for row in rows])
        scored = learner.score(some)
        for place, row in enumerate(rows):
            torch.testing.assert_close(
                scored.logits[scored.row == place], whole.logits[whole.row == row], rtol=1e-4, atol=1e-4
            )


def test_no_loss_of_codi_depends_on_the_other_examples(tokenizer, batch: CoTBatch, examples) -> None:
    learner = made(tokenizer, Codi(), examples)
    alone = [learner.method.loss(learner, batch.row(row), Stage(0, 0)) for row in range(ROWS)]
    whole = learner.method.loss(learner, batch, Stage(0, 0))
    for name in ("teacher", "distance"):
        torch.testing.assert_close(whole.more[name], torch.stack([each.more[name] for each in alone]).sum())


def test_nothing_is_written_after_an_answer_that_has_ended(tokenizer, examples, batch: CoTBatch) -> None:
    learner = made(tokenizer, Coconut(), examples)
    view = learner.method.view(learner, batch, stages(learner, examples))
    whole = view.attention_mask.sum(1) - view.num_given
    written = learner.generate(view, 100, whole)
    assert [len(tokens) for tokens in written] == whole.tolist()


def passes(learner: Learner, work: Callable[[], object]) -> list[int]:
    """Return the number of tokens in every forward pass of the model while `work` is done; padding counts."""
    seen: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        seen.append(given.shape[1])

    handle = learner.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    work()
    handle.remove()
    return seen


def test_n_thoughts_take_n_plus_one_passes_and_every_token_is_read_once(tokenizer, examples, batch: CoTBatch) -> None:
    for count in (1, 2, 5):
        learner = made(tokenizer, Coconut(thoughts=count, stages=1), examples)
        view = learner.method.view(learner, batch, Stage(1, 2))
        found = passes(learner, lambda learner=learner, view=view: learner.score(view))  # type: ignore[misc]
        assert len(found) == count + 1 and found[1:-1] == [1] * (count - 1)
        assert learner.tokens_read == int((view.attention_mask.sum(1) - 1).sum())
        with torch.no_grad():
            answered = passes(learner, lambda learner=learner, view=view: learner.generate(view.row(0), 1))  # type: ignore[misc]
        # The cache is compared with one more pass, once.
        assert answered[: count + 1] == [int(view.row(0).num_given[0]) - count - 1, *[1] * (count - 1), 2]


def test_decoding_leaves_the_cache_of_other_passes_alone(tokenizer, examples, batch: CoTBatch) -> None:
    learner = made(tokenizer, Coconut(), examples)
    view = learner.method.view(learner, batch, stages(learner, examples))
    first = learner.score(view)
    learner.generate(view, 5)
    again = learner.score(view)
    assert torch.equal(first.logits, again.logits)
    # The first result still has a graph of its own.
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients(learner, first.loss))


def test_positions_go_on_as_if_there_were_no_padding(tokenizer, examples, batch: CoTBatch) -> None:
    learner = made(tokenizer, Coconut(), examples)
    view = learner.method.view(learner, batch, stages(learner, examples))
    for row in range(ROWS):
        alone = view.row(row)
        assert alone.position[0].tolist() == list(range(alone.tokens.shape[1]))
        assert alone.part[0].diff().min() >= 0


def test_inserted_inputs_push_the_positions_of_a_gap(batch: CoTBatch) -> None:
    left = batch.remove(2, keep_position=True)
    view = left.insert([[own(0)] * (row % 3) for row in range(ROWS)])
    for row in range(ROWS):
        count, first = row % 3, int(batch.length_of(Part.PROMPT)[row])
        before, after = left.row(row).position[0].tolist(), view.row(row).position[0].tolist()
        middle = list(range(first, first + count))
        assert after == [*before[:first], *middle, *[place + count for place in before[first:]]]


# Checks before training


def check(learner: Learner, examples: EncodedExamples, sharded: bool = False) -> None:
    limits = Limits.of({"train": examples}, "left")
    require_readable(learner.method, learner.model, learner.eos, {"train": examples}, limits, sharded)


@pytest.mark.parametrize("case", CASES)
def test_every_method_can_be_read(case: str, tokenizer, examples) -> None:
    for kind in KINDS:
        check(made(tokenizer, CASES[case][0](), examples, kind), examples)


def test_models_and_settings_that_cannot_serve_are_one_line(tokenizer, examples) -> None:
    with pytest.raises(UserError, match="a mamba cannot read thoughts with a KV cache"):
        learner = made(tokenizer, Coconut(), examples)
        learner.model = build_model(ModelConfig(type="mamba", layers=1, heads=2, width=16), tokenizer, 64).eval()
        check(learner, examples)
    learner = made(tokenizer, Coconut(), examples)
    with pytest.raises(UserError, match=r"strategy=fsdp2: the views of method=coconut"):
        check(learner, examples, sharded=True)
    learner.model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="gradient_checkpointing=true: thoughts need a KV cache"):
        check(learner, examples)
    check(made(tokenizer, Pause(), examples), examples)


@pytest.mark.parametrize("kind", ["mistral", "phi3"])
def test_a_window_of_attention_must_hold_all_columns_of_a_batch(
    kind: str, tokenizer, examples, batch: CoTBatch
) -> None:
    learner = made(tokenizer, Coconut(), examples, kind)
    view = learner.method.view(learner, batch, stages(learner, examples))
    columns = view.tokens.shape[1]
    expected = learner.score(view).logits
    for window in (4, columns - 2, columns + 40):
        learner.model.config.sliding_window = window
        work: tuple[Callable[[], object], ...] = (
            lambda: learner.score(view), lambda: learner.generate(view, 31), lambda: check(learner, examples),
        )  # fmt: skip
        for act in work:
            if window > columns:
                act()
            else:
                with pytest.raises(UserError, match=f"attends to the last {window} tokens cannot read thoughts"):
                    act()
        # A row alone has no gaps, so that the window is that of the model.
        learner.score(view.row(0))
    torch.testing.assert_close(learner.score(view).logits, expected)


class Odd(Stepwise):
    """A method that puts in what a test says."""

    kind = "odd"
    inputs: tuple[int, ...] = ()
    count = learned = 3

    def num_tokens(self, limits: Limits) -> int:
        return self.learned

    def added(self, stage: int, limits: Limits) -> int:
        return self.count

    def view(self, learner: Learner, batch: CoTBatch, stage: Stage) -> CoTBatch:
        return super().view(learner, batch, stage).insert([self.inputs] * len(batch))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((own(0),) * 4, "Odd.view adds 4 inputs to an example at stage 0, and added returns 3"),
        ((own(3),), r"Odd.view holds own\(3\), and num_tokens returns 3"),
        ((LATENT, own(0), LATENT), "Odd.view holds LATENT in several places"),
    ],
)
def test_a_mistake_in_a_view_is_one_line(inputs: tuple[int, ...], message: str, tokenizer, examples) -> None:
    method = Odd()
    method.inputs = inputs
    with pytest.raises(UserError, match=message):
        check(made(tokenizer, method, examples), examples)


class Cut(Coconut):
    """Thoughts of a wrong shape."""

    def thought(self, learner: Learner, hidden: Tensor) -> Tensor:
        return hidden[:, 1:]


class Both(Coconut):
    """Thoughts and states beside them."""

    def prompt_states(self, learner: Learner, view: CoTBatch) -> None:
        return None


class Spread(Odd):
    """An input that nobody declared, while training alone."""

    def view(self, learner: Learner, batch: CoTBatch, stage: Stage) -> CoTBatch:
        self.inputs = (own(0),) if stage.each is None else (own(7),)
        return super().view(learner, batch, stage)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Cut(), r"Cut.thought returned \[4, 15\], must return \[4, 16\]"),
        (Both(), "Both.prompt_states and a view with LATENT do not go together"),
        (Spread(), r"Spread.view holds own\(7\), and num_tokens returns 3"),
    ],
)
def test_a_mistake_beside_the_views_of_evaluation_is_one_line(
    method: Method, message: str, tokenizer, examples
) -> None:
    with pytest.raises(UserError, match=message):
        check(made(tokenizer, method, examples), examples)


@pytest.mark.parametrize("verb", ["num_tokens", "added"])
@pytest.mark.parametrize("found", [None, "3", -1, 2.0])
def test_a_number_of_inputs_must_be_a_whole_number(verb: str, found: object, examples, monkeypatch) -> None:
    limits = Limits.of({"train": examples}, "left")
    Odd().require_counts(limits)
    monkeypatch.setattr(Odd, verb, lambda self, *given: found)
    if verb == "added":
        monkeypatch.setattr(Odd, "num_tokens", lambda self, limits: np.int64(3))
    with pytest.raises(UserError, match=rf"Odd\.\S+ returned {found!r}, must return a whole number from 0 on"):
        Odd().require_counts(limits)


def test_inputs_are_a_list_of_ids_for_each_row(batch: CoTBatch) -> None:
    for inputs in ([(own(0), LATENT)], [own(0)] * ROWS, []):
        with pytest.raises(UserError, match=f"batch.insert takes a list of ids for each of {ROWS} examples, not"):
            batch.insert(inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["codi", "sim_cot"])
def test_a_model_has_positions_for_a_cot_that_a_loss_reads_and_the_view_does_not(method: str, tmp_path: Path) -> None:
    options = ("task=mult4x4", "model.layers=1", "model.heads=1", "model.width=8", "model.positions=1",
               "task.train_size=100", "task.validation_size=8", "task.test_size=8", "data.batch_size=4", "data.epoch_size=4",
               "trainer.duration=1steps")  # fmt: skip
    few = ("schedule=no_cot", "method.thoughts=1", *["method.stages=1"] * (method == "sim_cot"))
    command("train", *options, *few, f"method={method}", f"run_dir={tmp_path / 'run'}")
    again = command("train", *options, f"model.init_from={tmp_path / 'run'}", f"run_dir={tmp_path / 'next'}")
    assert "its method trained besides the model stay behind" in " ".join(again.stderr.split())


def test_sim_cot_reads_examples_without_any_step(tokenizer, examples, batch: CoTBatch) -> None:
    learner = made(tokenizer, SimCoT(), examples)
    losses = learner.method.loss(learner, batch.remove(1 << 30), stages(learner, examples))
    assert float(losses.more["decoder"]) == 0
    total(losses).backward()  # type: ignore[no-untyped-call]


def test_bad_values_are_named() -> None:
    for make, line in (
        (lambda: Coconut(thoughts=-1), "method.thoughts=-1"), (lambda: Coconut(stages=-1), "method.stages=-1"),
        (lambda: Pause(tokens=-1), "method.tokens=-1"), (lambda: Codi(thoughts=0), "method.thoughts=0"),
        (lambda: Codi(weight=-1), "method.weight=-1"), (lambda: SimCoT(thoughts=0), "method.thoughts=0"),
        (lambda: SimCoT(side="right"), "method.side=right"), (lambda: Pause(keep_position=True), "method.keep_position=true"), (lambda: SimCoT(weight=-1), "method.weight=-1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            make()


def test_learned_inputs_begin_like_words(tokenizer, examples) -> None:
    learner = made(tokenizer, Stepwise(tell_stage=True), examples)
    words = learner.model.get_input_embeddings().weight  # type: ignore[union-attr]
    assert learner.tokens is not None
    assert float(learner.tokens.weight.std()) == pytest.approx(float(words.std()), rel=0.5)  # type: ignore[arg-type]
    assert not math.isclose(float(learner.tokens.weight[0, 0]), float(learner.tokens.weight[1, 0]))
