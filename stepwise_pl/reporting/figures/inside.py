"""All figures of a look inside a run, in the order of the page."""

from collections.abc import Callable, Sequence

from stepwise_pl.reporting.figures.data import Chart, HeatMap, Menu
from stepwise_pl.reporting.figures.inside_lens import lens_map, lens_menu
from stepwise_pl.reporting.figures.inside_probes import layer_menu, probe_maps
from stepwise_pl.reporting.figures.inside_shape import attention_menu, fourier_menu, similarity_menu
from stepwise_pl.reporting.figures.inside_use import ablation_map, ablation_menu, patch_menu, swap_menu
from stepwise_pl.reporting.figures.inside_when import when_chart
from stepwise_pl.reporting.history import History

Figure = Chart | HeatMap | Menu

# Each makes the figures of a part from a run and the beginning of their slugs.
PARTS: dict[str, Callable[[History, str], Sequence[Figure] | Figure | None]] = {
    "probes": probe_maps,
    "probes-when": when_chart,
    "probes-layers": layer_menu,
    "patches": patch_menu,
    "ablations": ablation_map,
    "ablations-layers": ablation_menu,
    "swaps": swap_menu,
    "lens": lens_map,
    "lens-layers": lens_menu,
    "attention": attention_menu,
    "fourier": fourier_menu,
    "similarity": similarity_menu,
}


def slug_of(part: str, number: int) -> str:
    """The beginning of the slugs of a part; `number`: of the run."""
    return f"inside-{number + 1}-{part}"
