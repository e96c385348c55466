"""The section Inside: what the tables say is what is drawn, beside its controls; and the page in a real browser."""

import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.reporting.figures.data import HeatMap, Menu
from stepwise_pl.reporting.figures.inside import draw
from stepwise_pl.reporting.figures.inside_menu import thinned
from stepwise_pl.reporting.figures.inside_places import NAME, Removal, Spot, Stage, kept_rows, short_names, stages_of
from stepwise_pl.reporting.history import History, read_run
from stepwise_pl.reporting.inside_tables import KINDS
from stepwise_pl.reporting.interactive import spec
from stepwise_pl.reporting.page import Figures
from stepwise_pl.runs.inside import Ablation, Lens, Patch, Probe, Swap, write_grids, write_rows
from tests.conftest import REPO, command
from tests.reporting import look_inside
from tests.reporting.conftest import opened
from tests.reporting.look_inside import PROMPT, STAGES, TOKENS, write_tables
from tests.reporting.test_report import HOSTILE, Page

Rows = list[dict[str, str]]


def make_run(folder: Path) -> Path:
    """A run of which the report needs no more than the configuration."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 3\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("inside") / "run")
    write_tables(folder)
    return folder


@pytest.fixture(scope="module")
def history(run: Path) -> History:
    found = read_run(run)
    assert not any("inside" in note for note in found.notes)
    return found


@pytest.fixture(scope="module")
def page_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    command("report", str(run), f"out={out}")
    return out


@pytest.fixture(scope="module")
def page(page_file: Path) -> Page:
    return Page(page_file.read_text())


def table(run: Path, name: str) -> Rows:
    with (run / "inside" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def one(part: str, history: History) -> Any:
    (figure,) = draw(part, history, 0)
    return figure


def drawn(figure: Any) -> dict[str, dict[tuple[str, str], float]]:
    """What plotly gets of a heat map: the number of each cell that has one by column and row, by the title of its panel."""
    assert isinstance(figure, HeatMap)
    found = spec(figure)
    maps = [trace for trace in found["data"] if trace["type"] == "heatmap"]
    titles = [unescape(note["text"]) for note in found["layout"]["annotations"]]
    return {
        title: {
            (x, y): value
            for y, row in zip(trace["y"], trace["z"], strict=True)
            for x, value in zip(trace["x"], row, strict=True)
            if value is not None
        }
        for title, trace in zip(titles, maps, strict=True)
    }


def lines(figure: Any) -> list[set[tuple[float, ...]]]:
    """The lines of each panel of a heat map, as plotly gets them."""
    layout = spec(figure)["layout"]
    panels = ["x", *(f"x{number}" for number in range(2, len(figure.panels) + 1))]
    return [
        {
            tuple(shape[key] for key in ("x0", "y0", "x1", "y1"))
            for shape in layout.get("shapes", [])
            if shape["xref"] == panel and shape["yref"] == panel.replace("x", "y")
        }
        for panel in panels
    ]


SOURCES = {
    "trained model": "trained", "random weights": "random", "raw input": "raw", "shuffled labels": "shuffled",
}  # fmt: skip


def test_the_best_probe_over_layers_and_places_stands_beside_its_controls(run: Path, history: History) -> None:
    rows = table(run, "probes")
    tokens, quantity = draw("probes", history, 0)
    for figure, targets in ((tokens, [f"cot {token}" for token in range(TOKENS)]), (quantity, ["running_sum 0"])):
        found = drawn(figure)
        assert list(found) == list(SOURCES)
        for title, source in SOURCES.items():
            wanted: dict[tuple[str, str], float] = {}
            for row in rows:
                if row["source"] == source and row["target"] in targets and row["given"] == "False":
                    key = (row["removed_tokens"], row["target"])
                    wanted[key] = max(wanted.get(key, -9.0), float(row["score"]))
            assert found[title] == pytest.approx(wanted), title
    constants = [float(row["score"]) for row in rows if row["source"] == "constant"]
    assert f"A constant guess: {min(constants):.1%} to {max(constants):.1%}." in tokens.caption


def test_a_place_that_has_read_the_target_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [row for row in look_inside.probes(random.Random(0)) if row.target == "cot 3" and row.source == "trained"]
    assert any(row.given and row.score == 1 for row in rows) and any(not row.given for row in rows)
    write_rows(run, [replace(row, score=0.5) if not row.given else row for row in rows], Probe)
    (figure,) = draw("probes", read_run(run), 0)
    assert set(drawn(figure)["trained model"].values()) == {0.5}
    write_rows(run, [row for row in rows if row.given], Probe)
    assert draw("probes", read_run(run), 0) == draw("probes-layers", read_run(run), 0) == []


def test_the_probe_that_was_chosen_on_problems_held_back_is_shown(tmp_path: Path) -> None:
    """Though another has a better score by chance."""
    run = make_run(tmp_path / "run")
    rows = [row for row in look_inside.probes(random.Random(0)) if row.target == "cot 3" and row.place == "prompt -2"]
    write_rows(
        run, [replace(row, chosen=row.layer in (1, -1), score=0.4 if row.layer == 1 else 0.6) for row in rows], Probe
    )
    (figure,) = draw("probes", read_run(run), 0)
    found = drawn(figure)
    assert set(found["trained model"].values()) == {0.4} and set(found["raw input"].values()) == {0.6}
    assert "chosen on problems that are not scored" in figure.caption
    assert max(drawn(one("probes-layers", read_run(run)).figures["cot 3",])["trained model"].values()) == 0.6


def test_the_line_stands_where_a_token_leaves(run: Path, history: History) -> None:
    tokens, quantity = draw("probes", history, 0)
    # Rows begin at the bottom, with the last token; token k is gone with k + 1 removed, the column of the same number.
    upright = {(TOKENS - y - 0.5, y - 0.5, TOKENS - y - 0.5, y + 0.5) for y in range(TOKENS)}
    for panel in lines(tokens):
        assert {line for line in panel if line[0] == line[2]} == upright
        assert len(panel - upright) == TOKENS - 1
    assert lines(quantity) == [set()] * 4
    menu = one("probes-layers", history)
    assert lines(menu.figures["cot 5",]) == [{(5.5, -0.5, 5.5, 3.5)}] * 4
    assert lines(menu.figures["running_sum 0",]) == [set()] * 4


def test_from_the_right_the_last_token_leaves_first(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "run")
    write_tables(other)
    (other / "config.yaml").write_text("seed: 3\nmethod: {kind: stepwise, side: right}\n")
    (tokens, _) = draw("probes", read_run(other), 0)
    assert {line for line in lines(tokens)[0] if line[0] == line[2]} == {
        (y + 0.5, y - 0.5, y + 0.5, y + 0.5) for y in range(TOKENS)
    }


def test_each_target_has_a_figure_by_layer(run: Path, history: History) -> None:
    menu = one("probes-layers", history)
    rows = table(run, "probes")
    assert list(menu.figures) == [(f"cot {token}",) for token in range(TOKENS)] + [("running_sum 0",)]
    for token in (0, 4):
        found = drawn(menu.figures[f"cot {token}",])
        for title, source in SOURCES.items():
            of_source = [
                row
                for row in rows
                if row["source"] == source and row["target"] == f"cot {token}" and row["given"] == "False"
            ]
            for (stage, layer), value in found[title].items():
                # The raw input has no layer, and stands at each.
                here = [row for row in of_source if row["removed_tokens"] == stage and row["layer"] in (layer, "-1")]
                assert value == pytest.approx(max(float(row["score"]) for row in here))
            assert len(found[title]) == len(STAGES) * look_inside.LAYERS
    # Token 0 is the first digit, which each control reads. A token that the model alone reads is shown first.
    assert menu.first != ("cot 0",) and menu.first[0].startswith("cot ")


def test_a_token_is_read_at_the_stages_at_which_its_probe_beats_each_control(run: Path, history: History) -> None:
    chart = one("probes-when", history)
    line, *dots = spec(chart)["data"]
    assert dict(zip(line["x"], line["y"], strict=True)) == {token: token + 1 for token in range(TOKENS)}
    rows = [row for row in table(run, "probes") if row["given"] == "False"]

    def is_above(stage: int, token: int, place: str) -> bool:
        here = [row for row in rows if (row["removed_tokens"], row["target"]) == (str(stage), f"cot {token}")]
        model = [float(row["low"]) for row in here if row["source"] == "trained" and row["place"] == place]
        others = [float(row["high"]) for row in here if row["source"] != "trained" and row["place"] in (place, "")]
        return max(model) > max(others)

    for name, at in (
        ("where it would be written", lambda stage, token: f"cot {token - 1}" if token > stage else "prompt -1"),
        ("at the end of the prompt", lambda stage, token: "prompt -1"),
    ):
        wanted = {
            token: [stage for stage in STAGES if is_above(stage, token, at(stage, token))] for token in range(TOKENS)
        }
        found = [
            (round(x), y)
            for trace in dots
            if trace["name"] == name
            for x, y in zip(trace["x"], trace["y"], strict=True)
        ]
        never = {round(x) for trace in dots if trace["name"] == f"{name}: never" for x in trace["x"]}
        assert found == [(token, stage) for token, stages in wanted.items() for stage in stages]
        assert never == {token for token, stages in wanted.items() if not stages}
        assert 0 in never  # the first digit, which the raw input gives away


def test_without_controls_nothing_can_be_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [row for row in look_inside.probes(random.Random(0)) if row.source in ("trained", "constant")]
    write_rows(run, rows, Probe)
    chart = one("probes-when", read_run(run))
    assert all("never" in trace["name"] for trace in spec(chart)["data"][1:])


def cells_of(rows: Rows, x: str, y: str, value: str) -> dict[tuple[str, str], float]:
    return {(row[x], row[y]): float(row[value]) for row in rows}


def test_states_put_in_are_drawn_by_layer_and_place(run: Path, history: History) -> None:
    menu = one("patches", history)
    assert len(menu.figures) == len(STAGES) * TOKENS and menu.first == (str(TOKENS), PROMPT[0], "answer 1")
    for stage, changed in ((0, "prompt -3"), (TOKENS, PROMPT[0])):
        rows = [row for row in table(run, "patches") if (row["stage"], row["changed"]) == (str(stage), changed)]
        figure = menu.figures[str(stage), changed, "answer 1"]
        found = drawn(figure)
        assert found["answers as B"] == pytest.approx(cells_of(rows, "place", "layer", "moved"))
        assert found["answers as A"] == pytest.approx(cells_of(rows, "place", "layer", "kept"))
        column = figure.x.index(changed)
        assert (column - 0.5, -0.5, column - 0.5, 3.5) in lines(figure)[0]


def test_the_ways_of_all_words_are_one_figure(run: Path, history: History, tmp_path: Path) -> None:
    menu = one("routes", history)
    # At the last layer, the answers follow the end of the prompt, and no word itself.
    assert len(menu.figures) == len(STAGES) * 4 and menu.first == (str(TOKENS), "3")
    rows = [row for row in table(run, "patches") if (row["stage"], row["layer"]) == ("5", "1")]
    figure = menu.figures["5", "1"]
    found = drawn(figure)
    assert found["answers as B"] == pytest.approx(cells_of(rows, "place", "changed", "moved"))
    assert found["answers as A"] == pytest.approx(cells_of(rows, "place", "changed", "kept"))
    # The first word stands at the top. Each word has its frame, of four lines.
    words = PROMPT[:-1]
    x, y = figure.x.index(words[0]), len(words) - 1
    assert (x - 0.5, y + 0.5, x + 0.5, y + 0.5) in lines(figure)[0] and len(lines(figure)[0]) == 4 * len(words)
    # Pairs with different targets count as many times as they are.
    few, many = (
        Patch("removed-0", 0, 0, 1, "prompt -1", "prompt -3", f"answer {number}", moved, 0, 1, 0.0, moved, pairs)
        for number, moved, pairs in ((1, 1.0, 10), (2, 0.0, 30))
    )
    folder = make_run(tmp_path / "two")
    write_rows(folder, [few, many, replace(few, changed="prompt -2", target="answer 1")], Patch)
    shown = drawn(one("routes", read_run(folder)).figures["0", "1"])["answers as B"]
    assert shown == {("prompt -1", "prompt -3"): 0.25, ("prompt -1", "prompt -2"): 1.0}
    # One word has no ways to compare: its own figure says all.
    write_rows(folder, [few, many], Patch)
    assert draw("routes", read_run(folder), 0) == [] and draw("patches", read_run(folder), 0)


def test_what_the_probe_of_an_ablation_reads_stands_beside_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    unread = Ablation("removed-1", 1, 1, 1, "prompt -1", "cot 0", 4, 1.0, 1.0, 1.0, 1.0, 1.0, 250, "answer", 0.21, 0.24)
    used = replace(unread, target="cot 1", accuracy=0.3, decoded=0.9)
    elsewhere = replace(used, layer=2, accuracy=0.8, decoded=1.0)
    write_rows(folder, [unread, used, elsewhere], Ablation)
    figure = one("ablations", read_run(folder))
    # The probe is that of the place and layer at which the ablation costs most.
    assert drawn(figure)["what the probe reads"] == {("1", "cot 0"): 0.21, ("1", "cot 1"): 0.9}
    assert "a constant guess: 24.0% at most" in figure.caption


def test_directions_taken_out_stand_beside_random_ones(run: Path, history: History) -> None:
    rows = table(run, "ablations")
    found = drawn(one("ablations", history))
    for title, value in (
        ("its directions taken out", "accuracy"), ("random directions (least)", "random_low"), ("nothing taken out", "whole"),
    ):  # fmt: skip
        wanted: dict[tuple[str, str], float] = {}
        for row in rows:
            key = (row["removed_tokens"], row["target"])
            wanted[key] = min(wanted.get(key, 9.0), float(row[value]))
        assert found[title] == pytest.approx(wanted)
    menu = one("ablations-layers", history)
    at = [row for row in rows if (row["stage"], row["target"]) == ("8", "cot 2")]
    found = drawn(menu.figures["8", "cot 2"])
    assert found["its directions taken out"] == pytest.approx(cells_of(at, "place", "layer", "accuracy"))
    assert found["random directions (mean)"] == pytest.approx(cells_of(at, "place", "layer", "random_mean"))


def test_holes_of_the_swap_table_are_framed(run: Path, history: History) -> None:
    menu = one("swaps", history)
    for stage in (0, TOKENS):
        rows = [row for row in table(run, "swaps") if row["stage"] == str(stage)]
        figure = menu.figures[str(stage),]
        found = drawn(figure)
        for title, value in (
            ("the right token changes", "should_move"), ("the model's token changes", "moved"),
            ("its probabilities move", "distance"),
        ):  # fmt: skip
            assert found[title] == pytest.approx(cells_of(rows, "target", "changed", value))
    # The first two words do not reach the answer at the last stage; they stand at the top.
    holes = {(-0.5, y, 0.5, y) for y in (5.5, 6.5, 7.5)}
    left, middle, right = lines(figure)
    assert left == set() and middle == right and {line for line in middle if line[1] == line[3]} == holes
    assert all(panel == set() for panel in lines(menu.figures["0",]))
    assert "2 holes" in figure.caption and "No hole." in menu.figures["0",].caption


def test_a_lens_shows_the_best_place_that_has_not_read_the_token(run: Path, history: History) -> None:
    rows = table(run, "lens")
    found = drawn(one("lens", history))
    assert list(found) == ["trained model", "random weights", "chance"]
    for stage in STAGES:
        for token in range(TOKENS):
            wanted = 0.0
            read: list[str] = []
            for place in look_inside.places(stage):
                read.append(place)
                if not any(f"cot {later}" in read for later in range(token, TOKENS)):
                    tops = [
                        float(row["top"])
                        for row in rows
                        if (row["stage"], row["place"], row["token"], row["source"])
                        == (str(stage), place, f"cot {token}", "trained")
                    ]
                    wanted = max(wanted, *tops)
            assert found["trained model"][str(stage), f"cot {token}"] == pytest.approx(wanted)
    menu = one("lens-layers", history)
    at = [row for row in rows if (row["stage"], row["token"]) == ("3", "cot 1")]
    found = drawn(menu.figures["3", "cot 1"])
    for title, source, value in (
        ("trained model", "trained", "top"), ("random weights", "random", "top"), ("chance", "trained", "chance"),
    ):  # fmt: skip
        of_source = [row for row in at if row["source"] == source]
        assert found[title] == pytest.approx(cells_of(of_source, "place", "layer", value))
    gone = drawn(menu.figures["3", "any that is gone"])["trained model"]
    for (place, layer), value in gone.items():
        tops = [
            float(row["top"])
            for row in rows
            if (row["stage"], row["place"], row["layer"], row["source"]) == ("3", place, layer, "trained")
            and row["token"] in ("cot 0", "cot 1", "cot 2")
        ]
        assert value == pytest.approx(max(tops))
    assert menu.first == ("8", "any that is gone") and ("0", "any that is gone") not in menu.figures


def test_attention_geometry_and_similarity_are_those_of_the_tables(run: Path, history: History) -> None:
    rows = [row for row in table(run, "attention") if row["stage"] == str(TOKENS)]
    menu = one("attention", history)
    heads = drawn(menu.figures["2, each head",])
    assert list(heads) == [f"head {head}" for head in range(4)]
    at = [row for row in rows if (row["layer"], row["head"]) == ("2", "3")]
    assert heads["head 3"] == pytest.approx(cells_of(at, "to", "place", "weight"))
    mean = drawn(menu.figures[menu.first])["layer 1"]
    for (to, place), value in mean.items():
        weights = [float(row["weight"]) for row in rows if (row["layer"], row["to"], row["place"]) == ("1", to, place)]
        assert value == pytest.approx(sum(weights) / 4)

    fits = drawn(one("fourier", history).figures["k 1", "all"])
    at = [row for row in table(run, "fourier") if row["basis"] == "k 1"]
    for title, value in (("trained model", "fit"), ("random: 95% quantile", "random_high"),
                         ("random vectors: mean", "random_mean"), ("shuffled: 95% quantile", "shuffled_high")):  # fmt: skip
        assert fits[title] == pytest.approx(cells_of(at, "stage", "what", value))

    alike = drawn(one("similarity", history).figures["prompt -1",])
    at = [row for row in table(run, "similarity") if (row["place"], row["layer"]) == ("prompt -1", "3")]
    at = [{**row, "other": row["other"].replace("random", "random weights")} for row in at]
    assert alike["layer 3"] == pytest.approx(cells_of(at, "stage", "other", "cka"))


def test_stages_of_the_same_removed_tokens_are_columns_of_their_own() -> None:
    row = Swap("stage-0", 8, 0, "prompt -2", "answer 1", 0.5, 1.0, 0.5, 0.5, 10)
    rows = [row, replace(row, checkpoint="stage-1", stage=1), replace(row, checkpoint="removed-0", removed_tokens=0)]
    assert list(stages_of(rows).values()) == ["0", "8, stage 0", "8, stage 1"]


def test_the_checkpoint_that_was_kept_of_a_stage_stands_for_it() -> None:
    row = Swap("best", 8, 8, "prompt -2", "answer 1", 0.5, 1.0, 0.5, 0.5, 10)
    rows = [row, replace(row, checkpoint="removed-8"), replace(row, checkpoint="last")]
    assert [found.checkpoint for found in kept_rows(rows)] == ["removed-8"]
    assert [found.checkpoint for found in kept_rows(rows[::2])] == ["best"]


@given(st.integers(1, 6), st.integers(0, 6), st.sampled_from(("left", "right")), st.integers(1, 3), st.data())
def test_a_token_is_given_away_once_it_or_a_later_one_is_read(
    length: int, removed: int, side: str, separators: int, data: st.DataObject
) -> None:
    """Against the tokens themselves, in the order of reading."""
    numbers = list(range(length))
    left = numbers[removed:] if side == "left" else numbers[: max(0, length - removed)]
    text = [
        "prompt -2",
        "prompt -1",
        *(f"cot {number}" for number in left),
        *(f"answer {n}" for n in range(separators + 2)),
    ]
    token = data.draw(st.sampled_from([*(f"cot {number}" for number in numbers), f"answer {separators}"]))
    later = [*(f"cot {number}" for number in numbers), *(f"answer {separators + n}" for n in range(2))]
    telling = set(later[later.index(token) :])
    removal, stage = Removal(side, length, separators), Stage(removed, removed)
    for end in range(1, len(text) + 1):
        given_away = bool(telling & set(text[:end]))
        assert removal.gives_away(Spot.of(text[end - 1]), Spot.of(token), stage) == given_away, (text[:end], token)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), min_size=1, unique=True), st.integers(1, 50),
       st.integers(1, 300))  # fmt: skip
def test_a_menu_has_as_many_figures_as_there_is_room_for(choices: list[tuple[str, ...]], cells: int, most: int) -> None:
    kept = thinned(choices, cells, most)
    assert kept == [choice for choice in choices if choice in kept] and kept
    if len(choices) * cells <= most:
        assert kept == choices
    if len(kept) * cells > most:
        assert all(len({choice[key] for choice in kept}) == 1 for key in range(2))


@given(st.lists(st.text("ab/", min_size=1, max_size=60), unique=True, max_size=8))
def test_names_beside_an_axis_are_short_and_differ(names: list[str]) -> None:
    found = short_names(names)
    assert len(set(found)) == len(names) and all(len(name) <= NAME for name in found)
    assert all(
        short == name for short, name in zip(found, names, strict=True) if len(name) <= NAME and found.count(name) == 1
    )


def test_a_run_into_which_nobody_has_looked_has_no_such_section(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for kind in KINDS.values():
        write_rows(run, [], kind)
    write_grids(run, [])
    command("report", str(run), f"out={tmp_path / 'page.html'}")
    page = Page((tmp_path / "page.html").read_text())
    assert "inside" not in page.ids and page.figures == {} and not any("inside" in item.lower() for item in page.items)


BROKEN = [*(kind.file for kind in KINDS.values()), "lens.jsonl"]


@pytest.mark.parametrize("file", BROKEN)
@pytest.mark.parametrize("damage", ["a,b\n1,2\n", "\0\udcff", "a" * 200_000, None])  # None: a line too much
def test_a_damaged_table_is_one_note(run: Path, tmp_path: Path, file: str, damage: str | None) -> None:
    other = make_run(tmp_path / "run")
    write_tables(other)
    path = other / "inside" / file
    text = path.read_bytes() + b"x,y\n" if damage is None else damage.encode(errors="surrogateescape")
    path.write_bytes(text)
    found = read_run(other)
    (note,) = [note for note in found.notes if "inside" in note]
    assert note.startswith(f"inside/{file} cannot be read (") and "\n" not in note and str(path) not in note
    whole, name = read_run(run).inside, next((name for name, kind in KINDS.items() if kind.file == file), "grids")
    for other_name in (*KINDS, "grids"):
        rows = getattr(found.inside, other_name)
        assert rows == ([] if other_name == name else getattr(whole, other_name)) or "nan" in repr(rows)


def test_a_figure_that_fails_costs_the_others_nothing(run: Path) -> None:
    history = read_run(run)
    history.inside.swaps = [SimpleNamespace()]  # type: ignore[list-item]
    found = Figures.of([history])
    (note,) = found.notes
    assert note.startswith("the figure of inside/swaps of ") and len(found.inside[0]) == 13


def test_a_lens_of_another_shape_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    grid = next(iter(look_inside.grids(random.Random(0))))
    for wrong in (
        replace(grid, read=grid.read[1:]), replace(grid, layers=[0]), replace(grid, words=[["a"]] * 4),
        replace(grid, probabilities=[[2.0] * len(grid.places)] * 4),
    ):  # fmt: skip
        write_grids(run, [grid, wrong])
        (note,) = [note for note in read_run(run).notes if "inside" in note]
        assert note.startswith("inside/lens.jsonl cannot be read (line 2")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stage", "x"), ("removed_tokens", None), ("checkpoint", 1e308), ("problem", [1]), ("prompt", {}), ("layers", ["1"]),
        ("words", [[None]]), ("probabilities", [["1"]]), ("places", "cot 1"), ("problem", True),
    ],
)  # fmt: skip
def test_a_lens_whose_values_have_other_types_is_one_note(tmp_path: Path, name: str, value: object) -> None:
    run = make_run(tmp_path / "run")
    grid = next(iter(look_inside.grids(random.Random(0))))
    write_grids(run, [grid, replace(grid, **{name: value})])  # type: ignore[arg-type]
    found = read_run(run)
    (note,) = [note for note in found.notes if "inside" in note]
    assert (
        note
        == f"inside/lens.jsonl cannot be read (holds no lens on problems (line 2: {name} has another type); make it again)"
    )
    assert not found.inside.grids


def test_the_page_has_every_figure_and_the_words(run: Path, page: Page) -> None:
    assert len(page.ids) == len(set(page.ids)) and set(page.figures) <= set(page.ids)
    parts = [part for part in Figures.of([read_run(run)]).inside[0] if isinstance(part, Menu)]
    assert sum(len(part.figures) for part in parts) == 72 + 72 + 36 + 9 + 80 + 9 + 4 + 2 + 2
    assert {"inside", "inside-1-said", "inside-1-words"} <= set(page.ids)


def test_files_are_the_figures_that_are_shown_first(run: Path, tmp_path: Path) -> None:
    from stepwise_pl.reporting.inside_files import write_pictures

    files = write_pictures(run, [Swap, Lens], tmp_path / "new" / "pictures")
    names = {file.stem for file in files}
    assert {file.suffix for file in files} == {".png", ".svg"} and all(file.stat().st_size > 3000 for file in files)
    assert "inside-1-lens" in names and "inside-1-swaps-9" in names and not any("probes" in name for name in names)
    text = (tmp_path / "new" / "pictures" / "inside-1-lens.svg").read_text()
    assert all(word in text for word in ("trained model", "random weights", "chance", "line: the token leaves"))


def test_a_report_with_tables_loads_no_torch(run: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom stepwise_pl.report import ReportConfig, report\n"
        f"report(ReportConfig([{str(run)!r}], {str(tmp_path / 'page.html')!r}))\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'wandb'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO)
    assert out.stdout.splitlines()[-1] == "[]", out.stderr


# In a browser.


@pytest.fixture(scope="module")
def seen(browser: Any, page_file: Path) -> Iterator[SimpleNamespace]:
    found = opened(browser, page_file)
    yield found
    found.tab.close()
    assert (found.said, len(found.asked)) == ([], 1)


@pytest.fixture
def tab(seen: SimpleNamespace) -> Iterator[Any]:
    yield seen.tab
    seen.tab.emulate_media(color_scheme="light", media="screen")
    seen.tab.set_viewport_size({"width": 1280, "height": 720})


def shown(menu: Any) -> list[str]:
    """The figures of a menu that can be seen."""
    return [plot.get_attribute("id") for plot in menu.locator(".plot:visible").all()]


def test_a_menu_shows_the_figure_that_is_chosen(tab: Any) -> None:
    menu = tab.locator("#inside-1-patches")
    stage, word, answer = (menu.locator("select").nth(number) for number in range(3))
    assert shown(menu) == ["inside-1-patches-65"] and not answer.is_visible()
    stage.select_option(label="3")
    word.select_option(label="prompt -5")
    (slug,) = shown(menu)
    tab.locator(f"#{slug}").scroll_into_view_if_needed()
    tab.locator(f"#{slug} .main-svg").first.wait_for()  # a figure is drawn once it is seen
    assert "3 CoT tokens removed" in menu.locator("figcaption:visible").inner_text()
    assert "prompt -5" in menu.locator("figcaption:visible").inner_text()
    stage.focus()
    tab.keyboard.press("ArrowDown")  # as with a mouse
    assert shown(menu) != [slug] and "4 CoT tokens removed" in menu.locator("figcaption:visible").inner_text()
    lens = tab.locator("#inside-1-lens-layers")
    lens.locator("select").nth(0).select_option(label="0")
    assert shown(lens) == [] and lens.get_by_text("This was not measured.").is_visible()  # no token is gone
    lens.locator("select").nth(1).select_option(label="cot 2")
    assert len(shown(lens)) == 1 and not lens.get_by_text("This was not measured.").is_visible()


def test_words_are_those_of_the_chosen_problem_and_checkpoint(tab: Any, run: Path) -> None:
    grids = [json.loads(line) for line in (run / "inside" / "lens.jsonl").read_text().splitlines()]
    part = tab.locator("#inside-1-words")
    problem, stage = part.locator("select").nth(0), part.locator("select").nth(1)

    def check(grid: dict[str, Any]) -> None:
        rows = [row.locator("th, td").all_inner_texts() for row in part.locator("tr").all()]
        wanted = [["place", *grid["places"]], ["right next word", *grid["next"]]]
        wanted += [[f"layer {layer}", *words] for layer, words in zip(grid["layers"], grid["words"], strict=True)][::-1]
        assert rows == [*wanted, ["word read", *grid["read"]]]
        hits = part.locator("td.hit").count()
        assert hits == sum(
            word == right for words in grid["words"] for word, right in zip(words, grid["next"], strict=True)
        )
        assert grid["cot"] in part.locator("[data-said]").inner_text()

    check(next(grid for grid in grids if (grid["problem"], grid["removed_tokens"]) == (0, TOKENS)))
    problem.select_option(index=2)
    stage.select_option(index=3)
    check(next(grid for grid in grids if (grid["problem"], grid["removed_tokens"]) == (2, 3)))


def test_panels_stand_side_by_side_where_there_is_room(tab: Any) -> None:
    """And the figure and its controls are seen at once, with one scale of colours."""
    tab.set_viewport_size({"width": 1280, "height": 720})

    def boxes() -> list[dict[str, float]]:
        found: list[dict[str, float]] = tab.evaluate(
            "[...document.querySelectorAll('#inside-1-probes-1 .heatmaplayer image, #inside-1-probes-1 .hm image')]"
            ".map((one) => one.getBoundingClientRect()).map(({x, y, width, height}) => ({x, y, width, height}))"
        )
        return found

    tab.locator("#inside-1-probes-1").scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelector('#inside-1-probes-1 .main-svg').clientWidth > 1000")
    tab.wait_for_timeout(300)
    wide = boxes()
    assert len({round(one["y"]) for one in wide}) == 1 and len(wide) == 4
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.locator("#inside-1-probes-1").scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelector('#inside-1-probes-1 .main-svg').clientWidth <= 390")
    tab.wait_for_timeout(300)
    narrow = boxes()
    assert len({round(one["y"]) for one in narrow}) == 2 and max(one["x"] + one["width"] for one in narrow) <= 390
    assert tab.locator("#inside-1-probes-1 .colorbar").count() == 1
    tab.wait_for_function("document.documentElement.scrollWidth <= 390")


@pytest.mark.parametrize("width", [1280, 390])
def test_titles_of_panels_do_not_meet(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    apart = """([plot, width]) => {
      const boxes = [...plot.querySelectorAll(".annotation-text")].map((one) => one.getBoundingClientRect());
      const meet = (a, b) => a.x < b.right && b.x < a.right && a.y < b.bottom && b.y < a.bottom;
      return boxes.every((a, i) => a.right <= width && boxes.every((b, j) => j <= i || !meet(a, b)));
    }"""
    for plot in tab.locator("#inside .plot:visible").all():
        plot.scroll_into_view_if_needed()
        tab.wait_for_function(apart, arg=[plot.element_handle(), width])  # once the figure has followed


LONG = "a_place_with_a_name_that_no_axis_has_room_for_" + "x" * 90


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables whose names and words hold HTML, or are long."""
    run = make_run(tmp_path_factory.mktemp("hostile") / "run")
    draw = random.Random(0)
    for kind, rows in look_inside.TABLES.items():
        written = [row for row in rows(draw) if row.removed_tokens in (3, 4)]
        for name in ("place", "target", "token", "to", "what", "changed", "other"):
            if hasattr(written[0], name):
                last = getattr(written[-1], name)
                for new in (HOSTILE, LONG):
                    written += [replace(row, **{name: new}) for row in written if getattr(row, name) == last]
        write_rows(run, written, kind)
    grids = [grid for grid in look_inside.grids(draw) if grid.removed_tokens == 3]
    texts = [HOSTILE, *["{{ 7 * 7 }}"] * (len(grids[0].places) - 1)]
    write_grids(
        run, [replace(grid, prompt=HOSTILE, cot=HOSTILE, read=texts, next=texts, words=[texts] * 4) for grid in grids]
    )
    return run


def test_text_of_tables_is_text_and_long_names_break_nothing(browser: Any, hostile: Path, tmp_path: Path) -> None:
    command("report", str(hostile), f"out={tmp_path / 'page.html'}")
    page = opened(browser, tmp_path / "page.html")
    tab = page.tab
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 800})
        for menu in tab.locator("#inside .menu").all():
            for select in menu.locator("select:visible").all():
                select.select_option(index=select.locator("option").count() - 1)
            for plot in menu.locator(".plot:visible").all():
                plot.scroll_into_view_if_needed()
                plot.locator(".main-svg").first.wait_for()
        tab.wait_for_function(f"document.documentElement.scrollWidth <= {width}")
    assert tab.evaluate("window.hacked") is None and tab.locator("main img").count() == 0
    assert (page.said, len(page.asked)) == ([], 1)
    words = tab.locator("#inside-1-words")
    assert words.locator("tfoot td").first.inner_text() == HOSTILE and "{{ 7 * 7 }}" in words.inner_text()
    assert HOSTILE in words.locator("[data-said]").inner_text()
    options = tab.locator("#inside option").all_inner_texts()
    assert any(HOSTILE in option for option in options) and any(LONG in option for option in options)
    tab.close()


def test_each_run_has_a_part_of_its_own(browser: Any, run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "all" / "other")
    write_rows(other, list(look_inside.swaps(random.Random(1))), Swap)
    make_run(tmp_path / "all" / "empty")
    (tmp_path / "all" / "run").symlink_to(run)
    command(
        "report", *(str(tmp_path / "all" / name) for name in ("empty", "other", "run")), f"out={tmp_path / 'page.html'}"
    )
    page = opened(browser, tmp_path / "page.html")
    tab = page.tab
    parts = tab.locator("#inside > details")
    assert [part.get_attribute("data-run") for part in parts.all()] == ["1", "2"]
    assert parts.nth(0).locator("figure:visible").count() == 1
    tab.locator("[data-shows='1']").click()
    assert not parts.nth(0).is_visible() and parts.nth(1).is_visible()
    assert (page.said, len(page.asked)) == ([], 1)
    tab.close()
