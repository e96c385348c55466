"""All figures of a look inside a run, in the order of the page."""

from collections.abc import Callable, Sequence

from stepwise_pl.reporting.figures.data import Chart, HeatMap, Menu
from stepwise_pl.reporting.figures.inside_lens import lens_map, lens_menu
from stepwise_pl.reporting.figures.inside_probes import layer_menu, probe_maps
from stepwise_pl.reporting.figures.inside_shape import attention_menu, fourier_menu, similarity_menu
from stepwise_pl.reporting.figures.inside_use import ablation_map, ablation_menu, patch_menu, route_menu, swap_menu
from stepwise_pl.reporting.figures.inside_when import when_chart
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.inside import Ablation, Attention, Fourier, Lens, Patch, Probe, Row, Similarity, Swap

Figure = Chart | HeatMap | Menu

# The table that a part is drawn from, and the function that draws it from a run and the beginning of its slugs.
PARTS: dict[str, tuple[type[Row], Callable[[History, str], Sequence[Figure] | Figure | None]]] = {
    "probes": (Probe, probe_maps),
    "probes-when": (Probe, when_chart),
    "probes-layers": (Probe, layer_menu),
    "routes": (Patch, route_menu),
    "patches": (Patch, patch_menu),
    "ablations": (Ablation, ablation_map),
    "ablations-layers": (Ablation, ablation_menu),
    "swaps": (Swap, swap_menu),
    "lens": (Lens, lens_map),
    "lens-layers": (Lens, lens_menu),
    "attention": (Attention, attention_menu),
    "fourier": (Fourier, fourier_menu),
    "similarity": (Similarity, similarity_menu),
}


def draw(part: str, run: History, number: int) -> list[Figure]:
    """The figures of a part; `number`: of the run on the page."""
    found = PARTS[part][1](run, f"inside-{number + 1}-{part}")
    figures = found if isinstance(found, Sequence) else [found]
    return [figure for figure in figures if figure is not None]
