"""Hidden states on disk: the residual stream of all problems at some places and layers, streamed from the model to a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stepwise_pl.inside.places import Place, columns
from stepwise_pl.inside.subject import Subject


@dataclass(frozen=True)
class States:
    """Hidden states in a file, [places, layers, problems, width] float32.

    Attributes:
        file: the file; it is mapped, and never in memory as a whole.
        shape: places, layers, problems, width.
    """

    file: Path
    places: Sequence[Place]
    layers: Sequence[int]
    shape: tuple[int, int, int, int]

    def at(self, place: Place, layer: int) -> npt.NDArray[np.float32]:
        """Return the states at a place after a layer, [problems, width]. Rows that lack the place are nan."""
        mapped = np.memmap(self.file, np.float32, "r", shape=self.shape)
        return np.array(mapped[self.places.index(place), self.layers.index(layer)])


def num_bytes(subject: Subject, places: int, layers: int) -> int:
    """Return the bytes that states take on the disk."""
    return 4 * places * layers * len(subject.texts) * _width(subject)


def _width(subject: Subject) -> int:
    return int(subject.learner.model.config.get_text_config().hidden_size)


@torch.inference_mode()
def write_states(
    subject: Subject, places: Sequence[Place], layers: Sequence[int], file: Path, batch_size: int = 256
) -> States:
    """Read all problems, teacher-forced, and write the states at some places after some layers (`Learner.hidden`) to a file."""
    shape = len(places), len(layers), len(subject.texts), _width(subject)
    mapped = np.memmap(file, np.float32, "w+", shape=shape)
    for whole, view in subject.batches(batch_size):
        states = subject.learner.hidden(view, layers).float().cpu()  # [layers, batch, seq - 1, width]
        row = torch.arange(len(view))
        for number, place in enumerate(places):
            column = columns(place, view, whole, subject.side)
            # The last token of an example has no state if no other example of the batch is longer.
            is_there = (column >= 0) & (column < states.shape[2])
            found = states[:, row, column.clamp(0, states.shape[2] - 1)]  # [layers, batch, width]
            found[:, ~is_there] = torch.nan
            mapped[number, :, view.draw.numpy()] = found.transpose(0, 1).numpy()
    mapped.flush()
    return States(file, tuple(places), tuple(layers), shape)
