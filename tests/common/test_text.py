"""Tables as text."""

from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.text import table

CELLS = st.text("ab/_-.,=", max_size=60)


@given(st.lists(CELLS, min_size=1, max_size=4), st.integers(2, 30))
def test_a_long_cell_goes_over_several_lines_and_loses_nothing(cells: list[str], widest: int) -> None:
    lines = table(["", "n"], [[cell, "7"] for cell in cells], widest)
    column = "".join(line.removesuffix("7").rstrip() for line in lines if not line.endswith("n"))
    assert column == "".join(cells)
    assert sum(line.endswith("7") for line in lines) == len(cells)
    assert all(len(line) <= widest + 3 for line in lines)


def test_a_long_cell_ends_its_line_behind_a_separator() -> None:
    assert table(["file", "runs"], [["data/augmented/part-0.jsonl", "3 of 3"]], 16) == [
        "file               runs",
        "data/augmented/  3 of 3",
        "part-0.jsonl",
    ]
