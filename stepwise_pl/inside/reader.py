"""States on demand: written to the disk for as many places and layers at a time as a bound allows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.states import States, num_bytes, room, write_states
from stepwise_pl.inside.subject import Subject


class StatesReader:
    """States of a subject at some places and layers. Those that are not on the disk take the place of those that are.

    Who asks for them in the order of `spots` has each read once.

    Args:
        folder: a temporary folder.
        most: the most bytes on the disk.

    Raises:
        UserError: the states at one place after one layer are more, or the disk has less room.
    """

    def __init__(
        self,
        subject: Subject,
        places: Sequence[Place],
        layers: Sequence[int],
        folder: Path,
        most: float,
        batch_size: int,
    ) -> None:
        self.subject, self.folder, self.batch_size = subject, folder, batch_size
        self.groups = groups(places, layers, num_bytes(subject, 1, 1), most)
        self.states: States | None = None
        needed = max(num_bytes(subject, len(some), len(of_layers)) for some, of_layers in self.groups)
        if needed > (free := room(folder)):
            raise UserError(
                f"{folder.parent}: has {free / 1e9:.2g} GB free, the states need {needed / 1e9:.2g}; free space, or set disk_gb"
            )

    @property
    def spots(self) -> list[tuple[Place, int]]:
        """All places and layers, in the order in which they are cheap to read."""
        return [(place, layer) for places, layers in self.groups for place in places for layer in layers]

    def at(self, place: Place, layer: int) -> npt.NDArray[np.float32]:
        """Return the states at a place after a layer, [problems, width]."""
        if self.states is None or place not in self.states.places or layer not in self.states.layers:
            places, layers = next(group for group in self.groups if place in group[0] and layer in group[1])
            self.states = write_states(self.subject, places, layers, self.folder / "states", self.batch_size)
        return self.states.at(place, layer)


def groups(
    places: Sequence[Place], layers: Sequence[int], each: int, most: float
) -> list[tuple[list[Place], list[int]]]:
    """Return the places and layers in groups that are small enough: all layers at some places, or some layers at one place.

    Args:
        each: bytes of the states at one place after one layer.
        most: bytes of a group.

    Raises:
        UserError: `each` is more than `most`.
    """
    room = int(most // each)
    if room < 1:
        raise UserError(
            f"disk_gb={most / 1e9:g}: the states at one place after one layer take {each / 1e9:.2g} GB; give more, or fewer problems"
        )
    if room >= len(layers):
        size = room // len(layers)
        return [(list(places[begin : begin + size]), list(layers)) for begin in range(0, len(places), size)]
    parts = [list(layers[begin : begin + room]) for begin in range(0, len(layers), room)]
    return [([place], part) for place in places for part in parts]
