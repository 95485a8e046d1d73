"""The bundled sentence pairs and reports: as many, as short and as unlike each other as their README says."""

import csv
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from headwise import InputError
from headwise.data import pairs, reports
from tests.unit.test_sample import assert_unlike, tenths, units


class Table(NamedTuple):
    path: Path
    languages: tuple[str, str]
    columns: tuple[str, str]
    rows: int
    lengths: tuple[range, range]


TABLES = {
    "en-fr": Table(pairs("en-fr"), ("en", "fr"), ("en", "fr"), 500, (range(4, 13), range(4, 15))),
    "en-zh": Table(pairs("en-zh"), ("en", "zh"), ("en", "zh"), 400, (range(4, 13), range(4, 21))),
    "reports": Table(reports(), ("en", "en"), ("text", "headline"), 300, (range(25, 61), range(4, 11))),
}


@pytest.fixture(params=TABLES)
def table(request):
    return TABLES[request.param]


def read(table: Table) -> list[list[str]]:
    header, *lines = table.path.read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == ["split", *table.columns]
    return [line.split("\t") for line in lines]


def words(language: str, text: str) -> list[str]:
    """Cut a text as `units` does, with the words of French as English ones."""
    return units("zh" if language == "zh" else "en", text)


def column(table: Table, at: int) -> tuple[str, list[str]]:
    return table.languages[at], [row[at + 1] for row in read(table)]


def test_there_are_as_many_as_the_readme_says(table):
    rows = read(table)
    assert len(rows) == table.rows
    assert Counter(split for split, *_ in rows) == {
        "train": table.rows * 8 // 10,
        "dev": table.rows // 10,
        "test": table.rows // 10,
    }


@pytest.mark.parametrize("at", [0, 1])
def test_texts_are_short(table, at):
    language, texts = column(table, at)
    for text in texts:
        length = len(words("zh", text)) if language == "zh" else len(text.split())
        assert length in table.lengths[at], text


@pytest.mark.parametrize("at", [0, 1])
def test_texts_are_clean(table, at):
    for text in column(table, at)[1]:
        assert text == " ".join(text.split()), text
        assert text == unicodedata.normalize("NFC", text)
        assert not [char for char in text if unicodedata.category(char).startswith("C")], text
        assert text[0] not in "\"'", text


def test_a_reader_of_tables_reads_the_same(table):
    with table.path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file, delimiter="\t"))[1:] == read(table)


@pytest.mark.parametrize("at", [0, 1])
def test_no_text_stands_twice(table, at):
    assert Counter(column(table, at)[1]).most_common(1)[0][1] == 1


@pytest.mark.parametrize("at", [0, 1])
def test_no_two_texts_share_half_of_their_four_grams(table, at):
    language, texts = column(table, at)
    assert_unlike("zh" if language == "zh" else "en", texts)


def test_the_text_decides_the_split(table):
    held = {row[1]: row[0] for row in read(table)}
    assert held == tenths(list(held))


@pytest.mark.parametrize("at", [0, 1])
def test_the_held_out_part_speaks_of_what_was_learned(table, at):
    language, rows = table.languages[at], read(table)
    same = [place for place in (0, 1) if table.languages[place] == language]
    known = {word for row in rows if row[0] == "train" for place in same for word in words(language, row[place + 1])}
    held_out = [word for row in rows if row[0] != "train" for word in words(language, row[at + 1])]
    assert sum(word in known for word in held_out) >= 0.75 * len(held_out)


def test_reports_are_two_to_four_sentences():
    _, texts = column(TABLES["reports"], 0)
    assert [text for text in texts if len(re.findall(r"[.?!](?= [A-Z]|$)", text)) not in range(2, 5)] == []


@pytest.mark.parametrize("at", [0, 1])
def test_each_language_is_written_in_its_script(table, at):
    language, texts = column(table, at)
    wanted = {"en": r"[ -~]+", "fr": r"[ -~À-ÿœŒ]+", "zh": r"[\u4e00-\u9fff\uff0c\u3002\uff1f\uff01]+"}[language]
    assert [text for text in texts if not re.fullmatch(wanted, text)] == []


def test_headlines_say_most_but_not_all_in_words_of_the_report():
    taken = [
        word in set(words("en", text))
        for _, text, headline in read(TABLES["reports"])
        for word in words("en", headline)
    ]
    assert 0.5 < sum(taken) / len(taken) < 0.95


@pytest.mark.parametrize("languages", ["fr-en", "en", "", "EN-FR", "../en-fr"])
def test_other_languages_are_refused(languages):
    with pytest.raises(InputError, match=f"`en-fr` or `en-zh`; got '{re.escape(languages)}'"):
        pairs(languages)
