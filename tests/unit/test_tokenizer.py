"""Tokens: Penn Treebank words, subwords and characters, English and Chinese, and those of pretrained models."""

import json
import os
import sys
from pathlib import Path

import pytest

from headwise import ConfigError, InputError
from headwise.contracts import settings
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.tokenizer import Tokenizer

pytest.importorskip("tokenizers")

KINDS = ("words", "subwords", "characters")
ENGLISH = ["The film isn't good, it's great!", "the plot (if any) isn't great.", "A great, great film."]
CHINESE = ["我喜欢这部电影。", "这部电影不好看 at all!", "我不喜欢。"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))


def trained(texts, kind="words", **chosen):
    return Tokenizer.train(iter(texts), TokenizerSettings(kind=kind, **chosen))


def cut(text, **chosen):
    tokenizer = trained([text], **chosen)
    return tokenizer.tokens(tokenizer.encode([text], max_tokens=1_000).ids[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't worry, it's John's.", "Do n't worry , it 's John 's ."),
        ("I'll say we've CAN'T (cannot) o'clock", "I 'll say we 've CA N'T ( cannot ) o'clock"),
        ('The dogs\u2019 bowl isn\u2019t "here"...', "The dogs ' bowl is n't \" here \" ..."),
        ("Mr. Smith of the U.S. paid $1,000.50.", "Mr. Smith of the U.S. paid $ 1,000.50 ."),
        ("A well-made film.<br/><br/>The end!!!", "A well-made film . <br/> <br/> The end !!!"),
        ("-LRB- a co-writer\\/director 's `` Cat '' -RRB- \\* ca n't", None),
        ("J. R. Smith rock'n'roll '90s 'em --", "J. R. Smith rock'n'roll '90s 'em --"),
    ],
)
def test_words_follow_the_penn_treebank(text, words):
    assert cut(text, lowercase=False) == (words or text).split()
    assert cut(" ".join(cut(text, lowercase=False)), lowercase=False) == (words or text).split()
    assert cut(text) == (words or text).lower().split()


def test_a_vocabulary_of_words_takes_more_as_long_as_there_is_room(tmp_path):
    more = ["good", "Bad", "don't", "two words", "bad", "well-made", "plot"]
    trained(["a good film"]).knowing(more, 9).save(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert set(tokenizer.vocabulary[4:7]) == {"a", "good", "film"}
    assert tokenizer.vocabulary[7:] == ["bad", "well-made"]
    assert tokenizer.tokens(tokenizer.encode(["A BAD plot"], max_tokens=9).ids[0]) == ["a", "bad", "<unk>"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chinese", ["words", "characters"])
def test_a_saved_tokenizer_is_the_same(tmp_path, kind, chinese):
    pytest.importorskip("jieba")
    tokenizer = trained(ENGLISH + CHINESE, kind, chinese=chinese)
    assert [tokenizer.inner.token_to_id(name) for name in ("<pad>", "<unk>", "<s>", "</s>")] == [0, 1, 2, 3]
    assert (tokenizer.unknown_id, tokenizer.begin_id, tokenizer.end_id) == (1, 2, 3)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.kind == kind
    assert again.vocabulary == tokenizer.vocabulary
    texts = [*ENGLISH, *CHINESE, "电影 unseen"]
    assert again.encode(texts, max_tokens=50) == tokenizer.encode(texts, max_tokens=50)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] in ("WordLevel", "BPE")


def test_chinese_is_cut_into_words_or_characters():
    pytest.importorskip("jieba")
    assert cut("我喜欢这部电影 a lot。") == ["我", "喜欢", "这部", "电影", "a", "lot", "。"]
    assert cut("我喜欢电影 ok", chinese="characters") == ["我", "喜", "欢", "电", "影", "ok"]
    assert cut("我喜欢 ok", kind="characters") == ["我", "喜", "欢", "▁", "o", "k"]
    assert "欢" in cut("我喜欢电影 ok", kind="subwords")


def test_chinese_words_need_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    monkeypatch.setattr("headwise.tasks.chinese._cutter", __import__("headwise").tasks.chinese._cutter.__wrapped__)
    assert cut("no Chinese here") == ["no", "chinese", "here"]
    with pytest.raises(InputError, match=r'pip install "headwise\[chinese\]"'):
        trained(CHINESE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["The film isn't good,  it's", "我喜欢 这部电影 film。不好看"])
def test_offsets_find_the_tokens_in_the_text(kind, text):
    pytest.importorskip("jieba")
    tokenizer = trained([text], kind, lowercase=False)
    ids, offsets = tokenizer.encode([text], max_tokens=90).ids[0], tokenizer.offsets(text, max_tokens=90)
    assert len(ids) == len(offsets)
    for token, (begin, end) in zip(tokenizer.tokens(ids), offsets, strict=True):
        assert token.strip("▁") in ("", text[begin:end].strip())
    held = tokenizer.offsets(text, max_tokens=90, ends=True)
    assert (held[0], held[1:-1], held[-1]) == ((0, 0), offsets, (0, 0))


def test_long_texts_are_cut_and_counted():
    tokenizer = trained(["a b c d e"])
    found = tokenizer.encode(["a b c d e", "a b c", "a"], max_tokens=3)
    assert ([tokenizer.tokens(ids) for ids in found.ids], found.cut) == ([["a", "b", "c"], ["a", "b", "c"], ["a"]], 1)
    found = tokenizer.encode(["a b", "a"], max_tokens=3, ends=True)
    assert ([tokenizer.tokens(ids) for ids in found.ids], found.cut) == ([["<s>", "a", "</s>"]] * 2, 1)
    with pytest.raises(InputError, match="`max_tokens` must be at least 3; got 2"):
        tokenizer.encode(["a"], max_tokens=2, ends=True)


def test_the_file_of_a_tokenizer_has_not_the_limit_of_the_last_call():
    tokenizer = trained(["a b c d e"])
    fresh = tokenizer.json
    tokenizer.encode(["a b c"], max_tokens=2)
    assert tokenizer.json == fresh
    assert json.loads(fresh)["truncation"] is None


def test_every_text_has_a_token_and_none_is_special():
    tokenizer = trained(["a b"])
    assert tokenizer.encode(["", "zzz"], max_tokens=5).ids == [[1], [1]]
    assert 3 not in tokenizer.encode(["a </s> <pad> b"], max_tokens=50).ids[0]


@pytest.mark.parametrize("kind", ["subwords", "characters"])
def test_decoding_gives_the_text_back(kind):
    tokenizer = trained(ENGLISH + CHINESE, kind, lowercase=False)
    texts = [*ENGLISH, *CHINESE]
    found = tokenizer.encode(texts, max_tokens=90, ends=True).ids
    assert [tokenizer.decode(ids) for ids in found] == texts


def test_the_vocabulary_is_bounded():
    texts = ["a a a b b c"]
    assert trained(texts, vocabulary=6).vocabulary[4:] == ["a", "b"]
    assert trained(texts, min_frequency=3).vocabulary[4:] == ["a"]
    with pytest.raises(InputError, match="must hold tokens seen 9 times; got none"):
        trained(texts, min_frequency=9)
    with pytest.raises(ConfigError, match="`vocabulary` must be at least 5; got 4"):
        settings.read(TokenizerSettings, {"vocabulary": 4})


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt", "hub"])
def test_the_tokenizer_of_a_pretrained_model_is_loaded(tmp_path, form):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s", "is", "n", "'", "t"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    if form == "tokenizer.json":
        Tokenizer.pretrained(str(tmp_path)).save(tmp_path / "tokenizer.json")
        (tmp_path / "vocab.txt").unlink()
    tokenizer = Tokenizer.pretrained(str(tmp_path))
    assert tokenizer.kind == "pretrained"
    assert tokenizer.encode(["Good films", "good film is n't [SEP]"], max_tokens=5).ids[0] == [2, 5, 6, 7, 3]
    assert tokenizer.encode(["[SEP]"], max_tokens=50).ids[0].count(3) == 1
    assert tokenizer.offsets("Good films", max_tokens=9) == [(0, 0), (0, 4), (5, 9), (9, 10), (0, 0)]
    assert tokenizer.decode([2, 5, 6, 7, 3]) == "good films"
    assert (tokenizer.unknown_id, tokenizer.begin_id, tokenizer.end_id) == (1, 2, 3)


def test_broken_settings_beside_a_vocabulary_are_told(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    for broken in ("{", "[]", "\xff"):
        (tmp_path / "tokenizer_config.json").write_bytes(broken.encode("latin-1"))
        with pytest.raises(InputError, match=r"tokenizer_config\.json` must be a JSON object"):
            Tokenizer.pretrained(str(tmp_path))


def test_the_tokenizer_of_the_hub_is_loaded_through_transformers(monkeypatch):
    transformers = pytest.importorskip("transformers")
    inner = trained(["a b"]).inner
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name, use_fast: {"org/name": fast}[name])
    assert Tokenizer.pretrained("org/name").size == 6


def test_a_broken_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(InputError, match=r"must be a tokenizer\.json; got"):
        Tokenizer.pretrained(str(tmp_path))
    with pytest.raises(InputError, match=r"none\.json must be a tokenizer\.json"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"must hold tokenizer\.json or vocab\.txt; got neither"):
        Tokenizer.pretrained(str(tmp_path / "empty"))


@pytest.mark.skipif("HEADWISE_DATA" not in os.environ, reason="HEADWISE_DATA is not set")
def test_the_sentiment_treebank_comes_out_as_it_went_in():
    lines = (Path(os.environ["HEADWISE_DATA"]) / "sst/sst2.dev.tsv").read_text().splitlines()[1:]
    words = [line.split("\t")[1].split() for line in lines]
    tokenizer = trained([" ".join(each) for each in words], lowercase=False)
    found = tokenizer.encode([" ".join(each) for each in words], max_tokens=200).ids
    changed = sum(tokenizer.tokens(ids) != each for ids, each in zip(found, words, strict=True))
    assert changed <= 2
