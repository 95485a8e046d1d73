"""The bundled reviews: as many, as balanced and as unlike each other as their README says, and no template."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import pytest

from headwise import InputError
from headwise.data import reviews

LABELS = ("negative", "positive")
LEAST = {"en": 1_000, "zh": 300}
LENGTH = {"en": range(6, 41), "zh": range(10, 61)}


class Review(NamedTuple):
    split: str
    label: str
    text: str


def read(language: str) -> list[Review]:
    header, *lines = reviews(language).read_text(encoding="utf-8").splitlines()
    assert header == "split\tlabel\ttext"
    return [Review(*line.split("\t")) for line in lines]


def units(language: str, text: str) -> list[str]:
    """Cut a text into words in English and into characters in Chinese, without punctuation."""
    return re.findall(r"[\w']+" if language == "en" else r"\w", text.lower())


def four_grams(language: str, text: str) -> set[tuple[str, ...]]:
    parts = units(language, text)
    return {tuple(parts[at : at + 4]) for at in range(len(parts) - 3)}


def assert_unlike(language: str, texts: Iterable[str]) -> None:
    """Hold that no two texts share half of the 4-grams of the shorter one."""
    grams = {text: four_grams(language, text) for text in texts}
    alike = [
        (one, other)
        for one, other in combinations(grams, 2)
        if 2 * len(grams[one] & grams[other]) >= min(len(grams[one]), len(grams[other]))
    ]
    assert not alike, alike


def assert_balanced(rows: list[Review]) -> None:
    share = sum(row.label == "positive" for row in rows) / len(rows)
    assert 0.45 <= share <= 0.55


def tenths(texts: list[str]) -> dict[str, str]:
    """Order texts by their SHA-256 and give the first tenth to test, the second to dev and the rest to train."""
    ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    tenth = round(len(ordered) / 10)
    return {text: ("test", "dev", "train")[min(at // tenth, 2)] for at, text in enumerate(ordered)}


@pytest.fixture(params=LEAST)
def language(request):
    return request.param


def test_there_are_enough(language):
    rows = read(language)
    assert len(rows) >= LEAST[language]
    assert {row.label for row in rows} == set(LABELS)


def test_texts_are_short_and_need_no_quotes(language):
    for _, _, text in read(language):
        length = len(text.split()) if language == "en" else len(text)
        assert length in LENGTH[language], text
        assert text == text.strip(), text
        assert text[0] not in "\"'", text


def test_a_reader_of_tables_reads_the_same(language):
    with reviews(language).open(encoding="utf-8", newline="") as file:
        rows = [Review(*row) for row in csv.reader(file, delimiter="\t")]
    assert rows[1:] == read(language)


def test_no_text_stands_twice(language):
    texts = Counter(row.text for row in read(language))
    assert texts.most_common(1)[0][1] == 1


def test_no_two_texts_share_half_of_their_four_grams(language):
    assert_unlike(language, (row.text for row in read(language)))


@pytest.mark.parametrize(
    ("language", "texts"),
    [
        ("en", ("The soup was cold and the bread was hard.", "The soup was cold and the waiter was rude to us.")),
        ("zh", ("这家店的面条很好吃", "他说这家店的面条不行")),
    ],
)
def test_a_template_would_be_noticed(language, texts):
    with pytest.raises(AssertionError):
        assert_unlike(language, texts)


def test_openings_differ(language):
    rows = read(language)
    openings = Counter(tuple(units(language, row.text)[:2]) for row in rows)
    assert openings.most_common(1)[0][1] <= 0.02 * len(rows)


def test_labels_are_balanced_in_every_split(language):
    rows = read(language)
    for split in ("train", "dev", "test"):
        assert_balanced([row for row in rows if row.split == split])


def test_the_text_decides_the_split(language):
    rows = read(language)
    for label in LABELS:
        held = {row.text: row.split for row in rows if row.label == label}
        assert held == tenths(list(held))


def test_a_linear_model_is_neither_right_nor_lost(language):
    """Train on words and pairs of them (characters and up to three): a template would be solved, noise would not."""
    needs = "scikit-learn is not installed: pip install scikit-learn"
    text = pytest.importorskip("sklearn.feature_extraction.text", reason=needs)
    linear = pytest.importorskip("sklearn.linear_model", reason=needs)
    words = {"ngram_range": (1, 2)} if language == "en" else {"analyzer": "char", "ngram_range": (1, 3)}
    rows = read(language)
    train, held_out = ([row for row in rows if (row.split == "train") == kept] for kept in (True, False))
    weigh, model = text.TfidfVectorizer(**words), linear.LogisticRegression(max_iter=1_000)
    model.fit(weigh.fit_transform([row.text for row in train]), [row.label for row in train])
    accuracy = model.score(weigh.transform([row.text for row in held_out]), [row.label for row in held_out])
    assert 0.52 < accuracy < 0.9


@pytest.mark.parametrize("language", ["fr", "", "EN", "../en"])
def test_another_language_is_refused(language):
    with pytest.raises(InputError, match=f"`en` or `zh`; got '{re.escape(language)}'"):
        reviews(language)
