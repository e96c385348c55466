"""The tokens themselves as a control: probes of states are compared with probes of what has been read (arXiv 2606.12689)."""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.inside.places import Place, columns
from stepwise_pl.inside.subject import Subject

# A column of the one-hot matrix stands for a token that so many problems to fit have, in every thousand.
RARE = 1


class RawTokens:
    """The tokens that all problems of a subject have read up to each place."""

    def __init__(self, subject: Subject, places: list[Place], batch_size: int) -> None:
        views = list(subject.batches(batch_size))
        width = max(view.tokens.shape[1] for _, view in views)
        self.places = places
        self.tokens = np.full((len(subject.texts), width), -1)  # [problems, seq]
        self.column = np.empty((len(places), len(subject.texts)), np.int64)
        for whole, view in views:
            self._add(whole, view, subject.side)

    def _add(self, whole: CoTBatch, view: CoTBatch, side: str) -> None:
        rows = view.draw.numpy()
        self.tokens[rows, : view.tokens.shape[1]] = view.tokens.numpy()
        for number, place in enumerate(self.places):
            self.column[number, rows] = columns(place, view, whole, side).numpy()

    def read(self, place: Place) -> npt.NDArray[np.int64]:
        """Return the tokens read at a place, [problems, positions]; -1 if there is none, and at thoughts, which are no tokens.

        Positions count from the beginning. If the place stands at different positions, they also count backwards from it.
        """
        column = self.column[self.places.index(place)][:, None]  # [problems, 1]
        width = int(column.max()) + 1
        position = np.arange(width)
        forwards = np.where(position <= column, self.tokens[:, :width], -1)
        if int(np.ptp(column)) == 0:
            found = forwards
        else:
            source = column - position
            backwards = np.take_along_axis(self.tokens, source.clip(0), axis=1)
            found = np.concatenate([forwards, np.where(source >= 0, backwards, -1)], axis=1)
        # Positions at which no problem has a token say nothing, and the same tokens look the same behind thoughts.
        found = np.maximum(found, -1)
        return np.asarray(found[:, (found >= 0).any(0)])


def one_hot(tokens: npt.NDArray[np.int64], num_fit: int) -> sparse.csr_array:
    """Return a column for each token at each position; [problems, columns] float32.

    A token that hardly any problem to fit has gets no column, and neither has a position at which all of these have the same token,
    or each a rare one.

    Args:
        tokens: [problems, positions].
        num_fit: the first problems are those to fit.
    """
    fewest = max(1, num_fit * RARE // 1000)
    parts = []
    for position in tokens.T:
        known, counts = np.unique(position[:num_fit], return_counts=True)
        known = known[counts >= fewest]
        if not len(known) or (len(known) == 1 and counts.max() == num_fit):
            continue
        index = np.searchsorted(known, position).clip(max=len(known) - 1)
        rows = np.flatnonzero(known[index] == position)
        ones = np.ones(len(rows), np.float32)
        parts.append(sparse.csr_array((ones, (rows, index[rows])), shape=(len(position), len(known))))
    if not parts:
        return sparse.csr_array((len(tokens), 1), dtype=np.float32)
    return sparse.csr_array(sparse.hstack(parts, format="csr"))
