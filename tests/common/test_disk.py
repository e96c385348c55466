"""JSON files: written in one go, read as an object, or one line that says why not."""

import tempfile
from pathlib import Path

import pytest

from stepwise_pl.common.disk import disk_error, link, read_json, read_json_or_empty, write_json
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


def test_a_second_name_is_a_copy_if_the_file_system_makes_no_link(tmp_path: Path) -> None:
    """No link leads from one file system to another."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        file = Path(folder) / "last.ckpt"
        for content in (b"first", b"second"):
            file.write_bytes(content)
            link(file, tmp_path / "good.ckpt")
            assert (tmp_path / "good.ckpt").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["good.ckpt"]


def test_a_second_name_keeps_the_content_if_the_first_is_replaced(tmp_path: Path) -> None:
    file, name = tmp_path / "last.ckpt", tmp_path / "good.ckpt"
    file.write_bytes(b"first")
    link(file, name)
    assert name.samefile(file)
    put = tmp_path / "new"
    put.write_bytes(b"second")
    put.replace(file)
    assert name.read_bytes() == b"first"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_one_line_however_deep_in_the_chain_it_stands() -> None:
    try:
        try:
            with Path("/dev/full").open("wb", buffering=0) as full:
                full.write(b"text")
        except OSError as error:
            raise RuntimeError("a library failed") from error
    except RuntimeError as error:
        assert disk_error(error) == "No space left on device: free space, or choose another folder"
    assert disk_error(RuntimeError("something else")) is None
