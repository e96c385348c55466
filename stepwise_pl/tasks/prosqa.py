"""Graph questions as in ProsQA (Hao et al. 2024, arXiv 2412.06769). The chain of thought is a path through the graph."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.registry import register
from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.sampling import Keys, Problems, SampledTask, row_keys

PERSONS = (
    "Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max", "Oliver", "Polly", "Rex", "Sally", "Sam",
    "Stella", "Tom", "Wren",
)  # fmt: skip
CONCEPTS = (
    "bompus", "boompus", "brimpus", "chorpus", "dumpus", "felpus", "fompus", "gerpus", "gorpus", "grimpus", "gwompus",
    "hilpus", "impus", "jelpus", "jompus", "kerpus", "lempus", "lorpus", "numpus", "quimpus", "rempus", "rompus",
    "rorpus", "scrompus", "shumpus", "sterpus", "storpus", "terpus", "timpus", "tumpus", "vumpus", "worpus", "wumpus",
    "yerpus", "yimpus", "yumpus", "zhorpus", "zumpus",
)  # fmt: skip

CHUNK = 1 << 12  # graphs grown at a time
NODES = 28  # nodes of a graph, with those that no fact names
MEAN_PARENTS = 1.5  # mean of the Poisson distribution of a node's parents
# Shares of nodes whose parents only root 0 leads to, whose parents only root 1 leads to, and with any parents.
SHARES = (0.35, 0.65 * 0.7, 0.65 * 0.3)
PULL = 1.5  # a node at distance d from the nearest root is drawn as a parent with weight 1 + PULL * d
FEWEST_STEPS = 3  # shortest chain that is asked for
FAR = 64  # distance from a root that does not lead to the node


@register("task")
@dataclass
class ProsQA(SampledTask):
    """Questions about facts that form a graph: which of two concepts is a person? The CoT is the chain of facts.

    Example line for `seed=0`, the first of training, without most of its facts:
    `Rex is a gorpus. Every kerpus is a dumpus. [...] Gabriel is a rempus. [...] Is Gabriel a tumpus or yerpus?||Gabriel is a worpus. Every worpus is a scrompus. Every scrompus is a zhorpus. Every zhorpus is a yerpus. #### Gabriel is a yerpus.`

    The text is that of the original files, so they are evaluated as they are, with any tokenizer. A reasoning step
    is one sentence. For the small tokenizer `lempus`, `lempus.` and `lempus?` are three words. A full stop as a
    token of its own would tell a model nothing, because every sentence has one, and make a fact a fifth longer.

    The rules were read off the 300 published validation problems:

    - A graph grows to 28 nodes. Nodes 0 and 1 are roots. Each further node draws a number of parents from a Poisson
      distribution of mean 1.5: with chance 0.35 among the nodes that only root 0 leads to, else with chance 0.7
      among those that only root 1 leads to, else among all. A node at distance d from the nearest root has weight
      1 + 1.5 d; a node that no root leads to has weight 1. Nodes without any edge are left out; about 23 stay, with
      36 edges.
    - Nodes without a parent are persons, the others are concepts. The names are drawn at random.
    - A leaf that only one root leads to may be a choice. The answer is one of those farthest from their root, at
      least 3 steps, and the question is about that root. The wrong choice is any of those of the other root.
    - The steps are one of the shortest paths. The facts and the two choices stand in random order.

    The algorithm in the paper differs in two ways. One random number makes both decisions, so the chances are 0.35,
    0.35 and 0.3. Nodes that no root leads to are candidates in all three cases. The rules above fit the published
    graphs better, by more than 100 in log-likelihood for each of the two.

    How it was tested: 29 properties of graph, question and text, among them lengths, degrees, names and what a
    shortcut would look at, are compared between generated and published problems, each at level 0.001
    (Kolmogorov-Smirnov test of numbers, chi-squared test of words). None differs. Each of these tests rejects a
    generator that is wrong on purpose. Small differences cannot be seen in 300 problems. One oddity is not
    explained: 64 of the 300 persons asked about have 11 concepts below them, and 38 were expected. Mean and spread
    are the same. A chi-squared test of that number gives p = 0.0001, the Kolmogorov-Smirnov test 0.2.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = "prosqa"
    # Problems of the training split; at least 1. The three sizes are the published ones.
    train_size: int = 17_886
    # Problems of the validation split; at least 1.
    validation_size: int = 300
    # Problems of the test split; at least 1.
    test_size: int = 500

    def symbols(self) -> tuple[str, ...]:
        """Return all words; a concept has three forms: within a sentence, at its end, and at the end of the question."""
        forms = (concept + mark for concept in CONCEPTS for mark in ("", ".", "?"))
        return ("Every", "Is", "a", "is", "or", *PERSONS, *forms)

    def draw(self, rng: np.random.Generator) -> Problems:
        """Return graphs and their questions, at most CHUNK; [n, NODES + 4].

        A row holds the parents of each node as bits, then root, answer, wrong choice, and the seed of the text.
        """
        parents, distance = grow(rng, CHUNK)
        leaves = ~parents.any(axis=1, keepdims=True)  # [n, 1, NODES]
        choices = only(distance < FAR) & (distance > 0) & leaves  # [n, 2 roots, NODES]
        longest = np.where(choices, distance, 0).max(axis=(1, 2), keepdims=True)  # [n, 1, 1]
        farthest = choices & (distance == longest)
        root, answer = np.divmod(any_of(rng, farthest.reshape(CHUNK, -1)), NODES)  # [n] each
        wrong = any_of(rng, choices[np.arange(CHUNK), 1 - root])  # [n]
        persons = (parents.any(axis=1) & ~parents.any(axis=2)).sum(axis=1)  # [n]
        both_have_choices = choices.any(axis=2).sum(axis=1) == 2
        fits = (longest.ravel() >= FEWEST_STEPS) & both_have_choices & (persons <= len(PERSONS))
        masks = parents @ (1 << np.arange(NODES))  # [n, NODES]
        seed = rng.integers(2**63, size=CHUNK)
        return np.asarray(np.column_stack([masks, root, answer, wrong, seed])[fits])

    def keys(self, problems: Problems) -> Keys:
        """Return a hash of graph and question. So no two problems differ in names and order alone."""
        return row_keys(problems[:, :-1])

    def render(self, problems: Problems) -> list[Example]:
        return [tell(row) for row in problems.tolist()]

    def strata(self, example: Example) -> dict[str, str]:
        """Return the number of steps. A CoT without marked steps, as a file of lines holds, has no strata."""
        return {"steps": str(len(example.steps))} if example.steps else {}


def grow(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Grow graphs.

    Returns:
        Whether a node is a parent of another, [count, NODES children, NODES parents]; and the distance of each
        node from each root, [count, 2 roots, NODES], FAR if the root does not lead to the node.
    """
    parents = np.zeros((count, NODES, NODES), bool)
    distance = np.full((count, 2, NODES), FAR)
    distance[:, [0, 1], [0, 1]] = 0
    for child in range(2, NODES):
        before = distance[:, :, :child]  # [count, 2, child]
        anyone = np.ones((count, 1, child), bool)
        candidates = np.concatenate([only(before < FAR), anyone], axis=1)  # [count, 3 cases, child]
        allowed = candidates[np.arange(count), rng.choice(3, count, p=SHARES)]  # [count, child]
        nearest = before.min(axis=1)  # [count, child]
        weight = 1 + PULL * np.where(nearest < FAR, nearest, 0)
        # Nodes wait for an exponential time, with their weight as the rate. Those that come first are a weighted
        # draw without replacement.
        waiting = np.where(allowed, rng.exponential(size=weight.shape) / weight, np.inf)
        place = waiting.argsort(axis=1).argsort(axis=1)
        drawn = allowed & (place < rng.poisson(MEAN_PARENTS, (count, 1)))
        parents[:, child, :child] = drawn
        distance[:, :, child] = np.where(drawn[:, None], before + 1, FAR).min(axis=2, initial=FAR)
    return parents, distance


def only(reached: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return whether a root, and not the other one, reaches a node; [n, 2 roots, nodes] as `reached`."""
    return reached & ~reached[:, ::-1]


def any_of(rng: np.random.Generator, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the index of a random true element of each row [n, ...]; 0 if there is none."""
    return np.asarray(np.where(mask, rng.random(mask.shape), -1).argmax(axis=1))


def tell(row: list[int]) -> Example:
    """Return the text of a row of `ProsQA.draw`."""
    *masks, root, answer, wrong, seed = row
    # Only `random()` is used: it gives the same numbers in every version of Python.
    rng = Random(seed)

    def shuffled(items: Iterable[Any]) -> list[Any]:
        return sorted(items, key=lambda _: rng.random())

    parents = [[node for node in range(NODES) if mask >> node & 1] for mask in masks]
    edges = [(parent, child) for child in range(NODES) for parent in parents[child]]
    persons, concepts = iter(shuffled(PERSONS)), iter(shuffled(CONCEPTS))
    names = {node: next(concepts if parents[node] else persons) for node in sorted({n for edge in edges for n in edge})}
    facts = {
        (parent, child): f"{'Every ' if parents[parent] else ''}{names[parent]} is a {names[child]}."
        for parent, child in edges
    }
    one, other = shuffled((answer, wrong))
    question = f"Is {names[root]} a {names[one]} or {names[other]}?"
    steps = [facts[edge] for edge in pairwise(shuffled(shortest_paths(parents, root, answer))[0])]
    return Example.of_steps(
        " ".join([*shuffled(facts.values()), question]), steps, f"{names[root]} is a {names[answer]}."
    )


def shortest_paths(parents: list[list[int]], start: int, end: int) -> list[tuple[int, ...]]:
    """Return all shortest paths, found backwards from the end; there must be one."""
    paths: list[tuple[int, ...]] = [(end,)]
    while not (found := [path for path in paths if path[0] == start]):
        paths = [(parent, *path) for path in paths for parent in parents[path[0]]]
    return found
