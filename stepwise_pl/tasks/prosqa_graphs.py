"""The graphs of ProsQA: how they grow, what is asked about them, and how they are told."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.sampling import Problems

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
Arrange = Callable[[list[str], list[str]], list[str]]


def draw(
    rng: np.random.Generator,
    power: float = 1.0,
    mean_parents: float | None = None,
    fewest: int | None = None,
    most: int = FAR,
) -> Problems:
    """Return graphs and their questions, at most CHUNK; [n, NODES + 4].

    A row holds the parents of each node as bits, then root, answer, wrong choice, and the seed of the text.

    Args:
        power, mean_parents: of the growth (`grow`).
        fewest, most: the fewest and the most steps that are asked for; None: `FEWEST_STEPS`.
    """
    parents, distance = grow(rng, CHUNK, power, mean_parents)
    leaves = ~parents.any(axis=1, keepdims=True)  # [n, 1, NODES]
    choices = only(distance < FAR) & (distance > 0) & leaves  # [n, 2 roots, NODES]
    longest = np.where(choices, distance, 0).max(axis=(1, 2), keepdims=True)  # [n, 1, 1]
    farthest = choices & (distance == longest)
    root, answer = np.divmod(any_of(rng, farthest.reshape(CHUNK, -1)), NODES)  # [n] each
    wrong = any_of(rng, choices[np.arange(CHUNK), 1 - root])  # [n]
    persons = (parents.any(axis=1) & ~parents.any(axis=2)).sum(axis=1)  # [n]
    both_have_choices = choices.any(axis=2).sum(axis=1) == 2
    fewest = FEWEST_STEPS if fewest is None else fewest
    right_steps = (longest.ravel() >= fewest) & (longest.ravel() <= most)
    fits = right_steps & both_have_choices & (persons <= len(PERSONS))
    masks = parents @ (1 << np.arange(NODES))  # [n, NODES]
    seed = rng.integers(2**63, size=CHUNK)
    return np.asarray(np.column_stack([masks, root, answer, wrong, seed])[fits])


def grow(
    rng: np.random.Generator, count: int, power: float = 1.0, mean_parents: float | None = None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Grow graphs.

    Args:
        power: of the weights by which parents are drawn; above 1, chains grow longer.
        mean_parents: None: `MEAN_PARENTS`.

    Returns:
        Whether a node is a parent of another, [count, NODES children, NODES parents]; and the distance of each
        node from each root, [count, 2 roots, NODES], FAR if the root does not lead to the node.
    """
    mean_parents = MEAN_PARENTS if mean_parents is None else mean_parents
    parents = np.zeros((count, NODES, NODES), bool)
    distance = np.full((count, 2, NODES), FAR)
    distance[:, [0, 1], [0, 1]] = 0
    for child in range(2, NODES):
        before = distance[:, :, :child]  # [count, 2, child]
        anyone = np.ones((count, 1, child), bool)
        candidates = np.concatenate([only(before < FAR), anyone], axis=1)  # [count, 3 cases, child]
        allowed = candidates[np.arange(count), rng.choice(3, count, p=SHARES)]  # [count, child]
        nearest = before.min(axis=1)  # [count, child]
        weight = (1 + PULL * np.where(nearest < FAR, nearest, 0)) ** power
        # Nodes wait for an exponential time, with their weight as the rate. Those that come first are a weighted
        # draw without replacement.
        waiting = np.where(allowed, rng.exponential(size=weight.shape) / weight, np.inf)
        place = waiting.argsort(axis=1).argsort(axis=1)
        drawn = allowed & (place < rng.poisson(mean_parents, (count, 1)))
        parents[:, child, :child] = drawn
        distance[:, :, child] = np.where(drawn[:, None], before + 1, FAR).min(axis=2, initial=FAR)
    return parents, distance


def only(reached: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return whether a root, and not the other one, reaches a node; [n, 2 roots, nodes] as `reached`."""
    return reached & ~reached[:, ::-1]


def any_of(rng: np.random.Generator, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the index of a random true element of each row [n, ...]; 0 if there is none."""
    return np.asarray(np.where(mask, rng.random(mask.shape), -1).argmax(axis=1))


def tell_each(problems: Problems, concepts: Sequence[str] | None = None) -> list[Example]:
    """Return the texts of problems [n, NODES + 4]; `concepts`: other names for concepts."""
    return [tell(row, concepts) for row in problems.tolist()]


def tell(row: list[int], concepts: Sequence[str] | None = None, arrange: Arrange | None = None) -> Example:
    """Return the text of a row of `draw`.

    Args:
        concepts: the names of concepts; None: `CONCEPTS`.
        arrange: puts the facts in order, given those in random order and those of the CoT; None: the random order.
    """
    *masks, root, answer, wrong, seed = row
    # Only `random()` is used: it gives the same numbers in every version of Python.
    rng = Random(seed)

    def shuffled(items: Iterable[Any]) -> list[Any]:
        return sorted(items, key=lambda _: rng.random())

    parents = [[node for node in range(NODES) if mask >> node & 1] for mask in masks]
    edges = [(parent, child) for child in range(NODES) for parent in parents[child]]
    persons, others = iter(shuffled(PERSONS)), iter(shuffled(concepts or CONCEPTS))
    names = {node: next(others if parents[node] else persons) for node in sorted({n for edge in edges for n in edge})}
    facts = {
        (parent, child): f"{'Every ' if parents[parent] else ''}{names[parent]} is a {names[child]}."
        for parent, child in edges
    }
    one, other = shuffled((answer, wrong))
    question = f"Is {names[root]} a {names[one]} or {names[other]}?"
    steps = [facts[edge] for edge in pairwise(shuffled(shortest_paths(parents, root, answer))[0])]
    told = shuffled(facts.values())
    if arrange is not None:
        told = arrange(told, steps)
    return Example.of_steps(" ".join([*told, question]), steps, f"{names[root]} is a {names[answer]}.")


def shortest_paths(parents: list[list[int]], start: int, end: int) -> list[tuple[int, ...]]:
    """Return all shortest paths, found backwards from the end; there must be one."""
    paths: list[tuple[int, ...]] = [(end,)]
    while not (found := [path for path in paths if path[0] == start]):
        paths = [(parent, *path) for path in paths for parent in parents[path[0]]]
    return found
