"""Scores of texts: equal to sacreBLEU and rouge-score, and as sure as their intervals say."""

import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from headwise.errors import ConfigError, InputError
from headwise.tasks.text_metrics import bleu, chrf, lead_sentence, rouge

WORDS = ["a", "the", "dog", "Cat", "sat,", "on:", "mat.", "(red)", "3.5", "small-ish", "it's"]
SIGNS = list("天气很好不今日我们、。a b")


def texts(words, joiner=" ", count=40, seed=0):
    draw = random.Random(seed)
    right = [joiner.join(draw.choices(words, k=draw.randint(1, 13))) for _ in range(count)]
    ours = [
        joiner.join(w if draw.random() < 0.8 else draw.choice(words) for w in text.split(joiner or None)) or "a"
        for text in right
    ]
    return ours, right


@pytest.mark.parametrize(
    ("language", "tokenize", "lowercase", "expected"),
    [
        ("en", None, False, "13a"),
        ("fr", None, True, "13a"),
        ("zh", None, False, "zh"),
        ("zh-CN", None, False, "zh"),
        ("ja", None, False, "char"),
        ("zh", "none", False, "none"),
        ("en", "intl", False, "intl"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_bleu_is_that_of_sacrebleu(language, tokenize, lowercase, expected, joined):
    ours, right = texts(WORDS) if joined else texts(SIGNS, "")
    metric = BLEU(tokenize=expected, lowercase=lowercase, force=True)
    score = bleu(ours, right, language=language, tokenize=tokenize, lowercase=lowercase)
    assert score.value == pytest.approx(metric.corpus_score(ours, [right]).score, rel=1e-12)
    assert score.signature == str(metric.get_signature())


@pytest.mark.parametrize(
    ("ours", "right"),
    [(["x y"], ["a b c"]), (["a b"], ["a b c d"]), ([""], ["a"]), (["a b c d e"], ["a x c y e"]), (["a"], [""])],
)
def test_edges_are_those_of_sacrebleu(ours, right):
    assert bleu(ours, right).value == pytest.approx(BLEU(force=True).corpus_score(ours, [right]).score)
    assert chrf(ours, right).value == pytest.approx(CHRF().corpus_score(ours, [right]).score, abs=1e-9)


def test_chrf_is_that_of_sacrebleu():
    for ours, right in (texts(WORDS), texts(SIGNS, "")):
        metric = CHRF()
        score = chrf(ours, right)
        assert score.value == pytest.approx(metric.corpus_score(ours, [right]).score, rel=1e-12)
        assert score.signature == str(metric.get_signature())


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_is_that_of_rouge_score(stem):
    ours, right = texts(["dog", "dogs", "cat", "the"])
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stem)
    found = [scorer.score(one, two) for one, two in zip(right, ours, strict=True)]
    for name, score in rouge(ours, right, stem=stem).items():
        expected = np.mean([one[name.replace("-", "").lower().replace("l", "L")].fmeasure for one in found])
        assert score.value == pytest.approx(100 * expected)
        assert f"stem:{'yes' if stem else 'no'}" in score.signature


def test_rouge_of_chinese_counts_characters():
    scores = rouge(["今天天气很好 GPU"], ["今天天气不好 gpu"], language="zh")
    assert scores["ROUGE-1"].value == pytest.approx(100 * 6 / 7)
    assert scores["ROUGE-2"].value == pytest.approx(100 * 4 / 6)
    assert scores["ROUGE-L"].value == pytest.approx(100 * 6 / 7)


def test_an_interval_is_that_of_drawing_sentences_again():
    ours, right = texts(WORDS, count=60)
    score, draw = bleu(ours, right), np.random.default_rng(1)
    metric, again = BLEU(force=True), []
    for _ in range(300):
        rows = draw.integers(60, size=60)
        again.append(metric.corpus_score([ours[i] for i in rows], [[right[i] for i in rows]]).score)
    low, high = score.interval()
    assert low < score.value < high
    np.testing.assert_allclose((low, high), np.percentile(again, [2.5, 97.5]), atol=2.5)
    assert score.interval() == score.interval()


def test_equal_runs_do_not_differ_and_better_ones_do():
    ours, right = texts(WORDS, count=200)
    worse = [text if i % 2 else "a mat" for i, text in enumerate(ours)]
    same = chrf(ours, right).compare(chrf(ours, right))
    assert same.difference == 0
    assert same.p == 1
    better = chrf(ours, right).compare(chrf(worse, right))
    assert better.low > 0
    assert better.p < 0.01
    assert bleu(worse, right).compare(bleu(ours, right)).high < 0


def test_a_difference_by_luck_is_rarely_sure():
    draw, unsure = np.random.default_rng(0), 0
    for seed in range(20):
        _, right = texts(WORDS, count=100, seed=seed)
        one, two = ([text if draw.random() < 0.5 else "a mat" for text in right] for _ in range(2))
        unsure += chrf(one, right).compare(chrf(two, right), 300).p > 0.05
    assert unsure >= 16


def test_runs_that_do_not_fit_are_refused():
    ours, right = texts(WORDS)
    with pytest.raises(InputError, match="the same sentences"):
        bleu(ours, right).compare(bleu(ours[1:], right[1:]))
    with pytest.raises(InputError, match="one metric"):
        bleu(ours, right).compare(bleu(ours, right, lowercase=True))


@pytest.mark.parametrize("metric", [bleu, chrf, rouge])
def test_wrong_numbers_of_texts_are_refused(metric):
    for ours, right in ((["a"], ["a", "b"]), ([], [])):
        with pytest.raises(InputError, match="equally many"):
            metric(ours, right)


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="`tokenize` must be one of"):
        bleu(["a"], ["a"], tokenize="moses")


def test_baselines():
    assert lead_sentence("Fast tool, v. 2. It works!") == "Fast tool, v."
    assert lead_sentence("  今天很好。明天呢") == "今天很好。"
    assert lead_sentence("no end here") == "no end here"
    assert lead_sentence("a title\n\nthen text. More.") == "a title"
