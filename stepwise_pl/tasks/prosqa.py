"""Graph questions as in ProsQA (Hao et al. 2024, arXiv 2412.06769). The chain of thought is a path through the graph."""

from dataclasses import dataclass

import numpy as np

from stepwise_pl.common.registry import register
from stepwise_pl.tasks import prosqa_ood
from stepwise_pl.tasks.base import Example, Examples, Splits
from stepwise_pl.tasks.formats import SENTENCE_FORMS, Form
from stepwise_pl.tasks.prosqa_graphs import CONCEPTS, PERSONS, draw, tell_each
from stepwise_pl.tasks.sampling import Keys, Problems, SampledTask, row_keys


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
        """Return graphs and their questions (`prosqa_graphs.draw`)."""
        return draw(rng)

    def keys(self, problems: Problems) -> Keys:
        """Return a hash of graph and question. So no two problems differ in names and order alone."""
        return row_keys(problems[:, :-1])

    def render(self, problems: Problems) -> list[Example]:
        return tell_each(problems)

    def strata(self, example: Example) -> dict[str, str]:
        """Return the number of steps. A CoT without marked steps, as a file of lines holds, has no strata."""
        return {"steps": str(len(example.steps))} if example.steps else {}

    def ood(self, splits: Splits, size: int) -> dict[str, Examples]:
        """Return the parts that `prosqa_ood.suite` describes."""
        return prosqa_ood.suite(splits["train"], self.seed, size)

    def forms(self) -> dict[str, Form]:
        """Return the forms of every task; facts without full stops, and the question first. The small tokenizer knows both."""
        return {**super().forms(), **SENTENCE_FORMS}
