"""Tables of strangers: files of other splits, quotes that nobody closes, values that are no text."""

import pytest

from headwise import InputError
from tests.unit.test_data import opened, rows_of, write

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))


def test_files_of_another_split_are_left_out_of_a_folder_that_is_named_for_one(tmp_path, caplog):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        write(folder / name, "csv", [("1", f"of {name}")])
    other = write(tmp_path / "other", "csv", [("0", "other")])
    table = opened({"train": folder, "dev": other})
    assert {name: len(rows) for name, rows in table.splits.items()} == {"train": 1, "dev": 1}
    assert rows_of(table) == [("1", "of train"), ("0", "other")]
    assert "left out" in caplog.text
    with pytest.raises(InputError, match=r"must hold tables of `train`; got .*dev.csv.* alone"):
        opened({"train": _only(folder, "dev")})


def _only(folder, name):
    """Empty a folder of all but one file."""
    for path in folder.iterdir():
        if not path.name.startswith(name):
            path.unlink()
    return folder


def test_a_column_that_is_no_split_is_told(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\tsplit\n" + "".join(f"0\ta\t{i}\n" for i in range(101)), encoding="utf-8")
    with pytest.raises(InputError, match=r"`split` must name at most 100 splits; got more, such as '100' in .*row 102"):
        opened(path)


def test_a_quote_that_nobody_closes_takes_one_row_with_it(tmp_path, monkeypatch, caplog):
    path = tmp_path / "a.csv"
    good = [f"1,row {i}" for i in range(50)]
    path.write_text(
        "\n".join(["label,text", *good[:20], '0,"lost', *good[20:30], '"lost too', *good[30:]]), encoding="utf-8"
    )
    assert [text for _, text in rows_of(opened(path, on_error="skip"))] == [f"row {i}" for i in range(50)]
    assert "row 22: broken CSV" in caplog.text
    assert "row 33: broken CSV" in caplog.text
    monkeypatch.setattr("headwise.tasks.readers._MOST_AGAIN", 60)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n1,another")
    assert len(opened(path, on_error="skip")) == 41
    assert "row 22: broken CSV" in caplog.text
    assert "rows down to 33 left out with it" in caplog.text


NOT_UTF8 = pyarrow.array([b"a", b"\xff", b"b"]).cast(pyarrow.binary()).view(pyarrow.string()).dictionary_encode()
LATE = pyarrow.array([0, 2**50, 0], pyarrow.int64()).cast(pyarrow.timestamp("ms"))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": NOT_UTF8, "label": [1, 0, 1]}, r"row 2, column `text` .* not UTF-8"),
        (
            {"text": ["a", "b", "c"], "label": [1.0, float("nan"), 1.0]},
            r"row 2, column `label` .* nan, which is no number",
        ),
        ({"text": LATE, "label": [1, 0, 1]}, r"row 1, column `text` .* a datetime, which is no text"),
    ],
)
def test_values_that_are_no_text_are_broken_rows(tmp_path, columns, told):
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=told):
        opened(tmp_path / "a.parquet")
    if columns["text"] is not LATE:
        assert opened(tmp_path / "a.parquet", on_error="skip").skipped.count == 1
