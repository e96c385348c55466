"""Graph questions unlike those trained on, in named parts: the suite of `evaluate suite=ood` for ProsQA."""

from collections.abc import Callable
from functools import partial

import numpy as np

from stepwise_pl.tasks.base import Example, Examples, chunks
from stepwise_pl.tasks.prosqa_graphs import FEWEST_STEPS, draw, tell, tell_each
from stepwise_pl.tasks.sampling import Problems, Rendered, distinct, row_keys

DEEP = 8.0  # the pull of deep graphs
DENSE = 2.5  # parents of a node in dense graphs, in the mean
# Names of concepts that the task does not have.
OTHER_CONCEPTS = (
    "blorpus", "brempus", "clumpus", "crompus", "dilpus", "drampus", "fulpus", "glumpus", "grulpus", "hempus", "horpus",
    "jampus", "klempus", "kropus", "lampus", "lumpus", "mimpus", "morpus", "nelpus", "norpus", "pelpus", "plompus",
    "pumpus", "quorpus", "relpus", "skimpus", "slorpus", "snumpus", "stimpus", "swompus", "tolpus", "trempus", "varpus",
    "vempus", "wilpus", "xorpus", "zalpus", "zimpus",
)  # fmt: skip


def suite(train: Examples, seed: int, size: int) -> dict[str, Examples]:
    """Return questions about new graphs, up to `size` for each part.

    fewer_hops     one or two steps
    more_hops      more steps than any problem trained on; new nodes rather hang at the end of a chain
    more_facts     more facts than any problem trained on; nodes have 2.5 parents in the mean
    other_names    names of concepts that were not trained on
    cot_in_order   the facts of the CoT stand in its order, the others anywhere
    cot_reversed   the facts of the CoT stand in the opposite order

    The graphs are drawn anew. That one of 28 nodes was trained on does not happen.

    Args:
        train: the training split, for its most steps and facts.
        seed: the seed of the draws.
        size: the most problems of a part.
    """
    steps, facts = _most(train)
    usual: Rule = draw, lambda _: True, tell_each
    rules: dict[str, Rule] = {
        "fewer_hops": (partial(draw, fewest=1), lambda example: len(example.steps) < FEWEST_STEPS, tell_each),
        "more_hops": (
            partial(draw, pull=DEEP, fewest=steps + 1),
            lambda example: len(example.steps) > steps,
            tell_each,
        ),
        "more_facts": (
            partial(draw, mean_parents=DENSE),
            lambda example: num_facts(example) > facts,
            tell_each,
        ),
        "other_names": (*usual[:2], partial(tell_each, concepts=OTHER_CONCEPTS)),
        "cot_in_order": (*usual[:2], partial(_arranged, backwards=False)),
        "cot_reversed": (*usual[:2], partial(_arranged, backwards=True)),
    }
    return {
        name: _part(rule, np.random.default_rng([seed, number]), size)
        for number, (name, rule) in enumerate(rules.items())
    }


# The draw of graphs, whether a problem belongs to the part, and how graphs are told.
Rule = tuple[Callable[[np.random.Generator], Problems], Callable[[Example], bool], Callable[[Problems], list[Example]]]


def _part(rule: Rule, rng: np.random.Generator, size: int) -> Rendered:
    draw_graphs, belongs, render = rule

    def some() -> Problems:
        # As many as are wanted in the end, because it takes longer to tell graphs than to draw them.
        problems = draw_graphs(rng)[: 2 * size]
        return problems[np.array([belongs(example) for example in render(problems)], bool)]

    return Rendered(distinct(some, row_keys, size), render)


def num_facts(example: Example) -> int:
    """Return the facts of a prompt."""
    return example.prompt.count(".")


def _most(train: Examples) -> tuple[int, int]:
    """Return the most steps and the most facts of a training problem."""
    counts = [(len(example.steps), num_facts(example)) for chunk in chunks(train) for example in chunk]
    return max(steps for steps, _ in counts), max(facts for _, facts in counts)


def _arranged(problems: Problems, backwards: bool) -> list[Example]:
    """Return the texts of graphs; the facts of the CoT fill their places in its order, or in the opposite one."""

    def arrange(facts: list[str], steps: list[str]) -> list[str]:
        ordered = iter(steps[::-1] if backwards else steps)
        return [next(ordered) if fact in steps else fact for fact in facts]

    return [tell(row, arrange=arrange) for row in problems.tolist()]
