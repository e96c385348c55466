"""Hidden states on disk: the residual stream of all problems at some places and layers, streamed from the model to a file."""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stepwise_pl.common.errors import UserError
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


def room(folder: Path) -> int:
    """Return the bytes that states may take in a temporary folder: those that are free, and those of states that lie there and go."""
    return shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.iterdir())


def _reserve(file: Path, size: int) -> None:
    """Make a file of so many bytes that the disk has room for. A mapped file without room would end the process by a signal."""
    with file.open("wb") as out:
        try:
            if hasattr(os, "posix_fallocate"):
                return os.posix_fallocate(out.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UserError(
                    f"{file.parent.parent}: has no room for {size / 1e9:.2g} GB of states ({error.strerror}); free space, or ask for "
                    "fewer problems, places or layers"
                ) from None
            # Some file systems cannot reserve.
        out.truncate(size)


@torch.inference_mode()
def write_states(
    subject: Subject, places: Sequence[Place], layers: Sequence[int], file: Path, batch_size: int = 256
) -> States:
    """Read all problems, teacher-forced, and write the states at some places after some layers (`Learner.hidden`) to a file.

    Args:
        file: in a temporary folder; an earlier one is replaced.

    Raises:
        UserError: the disk has no room for them.
    """
    shape = len(places), len(layers), len(subject.texts), _width(subject)
    _reserve(file, num_bytes(subject, len(places), len(layers)))
    mapped = np.memmap(file, np.float32, "r+", shape=shape)
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
