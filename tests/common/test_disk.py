"""JSON files: written in one go, read as an object, or one line that says why not."""

from pathlib import Path

import pytest

from stepwise_pl.common.disk import read_json, read_json_or_empty, write_json
from stepwise_pl.common.errors import UserError


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None, "ü"]})
    assert read_json(tmp_path / "a.json") == read_json_or_empty(tmp_path / "a.json") == {"a": [1, None, "ü"]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "content,reason",
    [(None, "cannot be read (No such file"), (b"", "is no JSON ("), (b"\xff", "is no JSON ("), (b"{", "is no JSON ("), (b"[1]", "is no JSON object")],
)  # fmt: skip
def test_anything_else_is_one_line_or_an_empty_object(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_json(path)
    assert str(refused.value).startswith(f"{path}: {reason}") and "\n" not in str(refused.value)
    assert read_json_or_empty(path) == {}
