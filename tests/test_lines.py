"""Line files: every malformed line is named by number and reason."""

import pytest

from stepwise_pl.errors import UserError
from stepwise_pl.tasks import Example, LineFiles
from stepwise_pl.tasks.lines import read_lines


def test_parts_are_stripped_and_an_empty_cot_is_valid(tmp_path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"1 + 1 || 2 #### 2\r\n\nwho? ||#### me\n")
    assert read_lines(str(path), "task.train") == [Example("1 + 1", "2", "2"), Example("who?", "", "me")]


@pytest.mark.parametrize(
    "line,reason",
    [
        (b"1 + 1 2 #### 2", "no '||'"),
        (b"1||2||3 #### 2", "'||' occurs more than once"),
        (b"1||2 2", "no '####'"),
        (b"1||2 #### 3 #### 4", "'####' occurs more than once"),
        (b" ||2 #### 2", "the prompt is empty"),
        (b"1||2 ####  ", "the answer is empty"),
        (b"1||\xff #### 2", "invalid UTF-8 at byte 4"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line: bytes, reason: str) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"1||2 #### 3\n" + line + b"\n")
    with pytest.raises(UserError) as error:
        read_lines(str(path), "task.train")
    assert "task.train=" in str(error.value)
    assert "line 2: " in str(error.value)
    assert reason in str(error.value)


def test_all_malformed_lines_are_counted(tmp_path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("bad\n" * 12)
    with pytest.raises(UserError, match=r"12 malformed lines: line 1: .*line 5: .*and 7 more"):
        read_lines(str(path), "task.train")


def test_missing_unset_and_empty_files(tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    for path, reason in (
        (None, "is not set"),
        ("nowhere.txt", "No such file"),
        (str(tmp_path / "empty.txt"), "no example"),
    ):
        with pytest.raises(UserError, match=reason):
            LineFiles(train=path).load()
