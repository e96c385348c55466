"""Graph questions unlike those trained on, in named parts: the suite of `evaluate suite=ood` for ProsQA."""

from collections.abc import Callable
from functools import partial

import numpy as np

from stepwise_pl.tasks.base import Example, Examples, chunks
from stepwise_pl.tasks.prosqa_graphs import FEWEST_STEPS, NODES, draw, tell, tell_each
from stepwise_pl.tasks.sampling import Problems, part

DEEP = 8.0  # the power of the weights in deep graphs
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

    The graphs are drawn anew, and not compared with those trained on: a graph of 28 nodes hardly comes twice.

    Args:
        train: the training split, for its most steps and facts.
        seed: the seed of the draws.
        size: the most problems of a part.
    """
    steps, facts = _most(train)
    rules: dict[str, tuple[Draw, Render]] = {
        "fewer_hops": (partial(draw, fewest=1, most=FEWEST_STEPS - 1), tell_each),
        "more_hops": (partial(draw, power=DEEP, fewest=steps + 1), tell_each),
        "more_facts": (partial(_dense, facts=facts), tell_each),
        "other_names": (draw, partial(tell_each, concepts=OTHER_CONCEPTS)),
        "cot_in_order": (draw, partial(_arranged, backwards=False)),
        "cot_reversed": (draw, partial(_arranged, backwards=True)),
    }
    return {
        name: part(draw_graphs, render, np.random.default_rng([seed, number]), size)
        for number, (name, (draw_graphs, render)) in enumerate(rules.items())
    }


Draw = Callable[[np.random.Generator], Problems]
Render = Callable[[Problems], list[Example]]


def _dense(rng: np.random.Generator, facts: int) -> Problems:
    """Return graphs [n, NODES + 4] of more than `facts` facts."""
    problems = draw(rng, mean_parents=DENSE)
    edges = (problems[:, :NODES, None] >> np.arange(NODES) & 1).sum(axis=(1, 2))
    return np.asarray(problems[edges > facts])


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
