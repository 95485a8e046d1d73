"""Write texts with the same weights in transformers, CTranslate2 and headwise: tokens a second.

python benchmarks/decoding.py --write
python benchmarks/decoding.py --run FOLDER --data FILE --write --name decoding-ends

The model has Marian's shape. Without a run it has 6 + 6 layers of width 512, 8,000 tokens and random weights, 32
sources of 20 tokens are one batch, and every text is forced to 20 tokens. With a run, one that has Marian's shape
(benchmarks/marian.toml), it writes until texts end, and sources of the data come in batches of 32 of like lengths.

Its weights are copied to transformers' Marian; ours is packed by `for_inference`; CTranslate2 reads what
`export_ctranslate2` wrote, in processes of its own: in ours, its threads would take the others' turns. All have the
same threads; CTranslate2 is measured with all of them on one batch (1 x n), and with n batches of a part of the
sources at once (n x 1).

"x transformers" is tokens a second over those of transformers in the same type of numbers (int8: in float32). "equal"
counts the texts that are those of transformers in float32, token by token; a search may take the other of two equally
good ways.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import Tensor

from benchmarks.common import Contestant, Report, begin, options, side_by_side
from headwise import Seq2Seq, Seq2SeqConfig, recipes
from headwise.contracts.settings import read
from headwise.integrations.ctranslate2 import export_ctranslate2
from headwise.models import DecoderConfig, EncoderConfig, for_inference
from headwise.recipes import rewrite
from headwise.tasks.decoding import Decoding, decode

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LONGEST = 30
"""Most tokens of a text that ends by itself: one that never does would have the whole batch of transformers wait."""
THEIRS = (
    ("encoder.tokens.table", "shared"),
    ("feed_forward.up", "fc1"),
    ("feed_forward.down", "fc2"),
    ("feed_forward_norm", "final_norm"),
    ("_norm", "_layer_norm"),
    ("cross_attention", "encoder_attn"),
    ("attention", "self_attn"),
    ("query", "q_proj"),
    ("key", "k_proj"),
    ("value", "v_proj"),
    ("output", "out_proj"),
)
"""Marian's words for parts of ours, in the order in which they are exchanged."""

Texts = list[tuple[int, ...]]


class Work(NamedTuple):
    """Hold sources, and how their texts end."""

    batches: list[tuple[Tensor, Tensor]]
    """The tokens of each batch, and how many of them are valid."""
    forced: int | None
    """Tokens of every text; none where the model ends them."""

    @property
    def fewest(self) -> int:
        """Give the fewest tokens of a text."""
        return self.forced or 0

    @property
    def most(self) -> int:
        """Give the most tokens of a text."""
        return self.forced or LONGEST


Way = Callable[[Work, int], Texts]
"""Takes sources and how many beams there are, and gives what was written."""


class Names:
    """Have a name for each id, as CTranslate2 wants."""

    unknown_id = 1

    def __init__(self, size: int) -> None:
        self.vocabulary = [str(i) for i in range(size)]

    def save(self, path: Path | str) -> None:
        """Need no file."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="numbers of beams (default: 1 4)")
    parser.add_argument("--run", type=Path, help="folder of a run of Marian's shape, to write until texts end")
    parser.add_argument("--data", type=Path, help="pairs whose sources it is given")
    parser.add_argument("--batches", type=int, default=10, help="how many batches of them (default: 10)")
    chosen = parser.parse_args()
    if (chosen.run is None) != (chosen.data is None):
        parser.error("--run and --data belong together")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    report = begin("Decoding beside transformers and CTranslate2", chosen)
    if chosen.run is None:
        model, *works = drawn(quick=chosen.quick)
    else:
        model, *works = trained(chosen.run, chosen.data, chosen.batches)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as engines:
        ways = contestants(model, Path(folder), chosen.threads, engines)
        for work in works:
            for beams in chosen.beams:
                measure(report, work, ways, beams, chosen.rounds)


def drawn(*, quick: bool) -> tuple[Seq2Seq, Work] | tuple[Seq2Seq, Work, Work]:
    """Draw a model and sources; in small, texts that end by themselves as well."""
    vocabulary, d_model, layers, heads, d_ff = (50, 16, 1, 2, 24) if quick else (8_000, 512, 6, 8, 2048)
    count, tokens = (3, 5) if quick else (32, 20)
    encoder = EncoderConfig(
        vocabulary,
        d_model,
        layers,
        heads,
        d_ff=d_ff,
        activation="silu",
        norm="post",
        positions="halves",
        scale_embedding=True,
    )
    ends = {"begin": vocabulary - 1, "end": 0, "pad": vocabulary - 1}
    model = Seq2Seq(Seq2SeqConfig(encoder, DecoderConfig(layers, d_ff=d_ff), output_bias=False, **ends)).eval()
    source_BK = torch.randint(1, vocabulary - 1, (count, tokens))
    source_BK[:, -1] = 0
    batch = source_BK, torch.full((count,), tokens)
    return (model, Work([batch], tokens), Work([batch], None)) if quick else (model, Work([batch], tokens))


def trained(folder: Path, data: Path, most: int) -> tuple[Seq2Seq, Work]:
    """Open a run, and cut sources into batches of like lengths, evenly from the longest to the shortest."""
    run = recipes.open_run(folder)
    examples = rewrite.examples(run, str(data))
    cuts = torch.from_numpy((-examples.length_N[:, 0]).argsort(kind="stable")).split(32)
    picked = [cuts[i * len(cuts) // most] for i in range(min(most, len(cuts)))]
    batches = [examples.batch(rows_B.tolist()) for rows_B in picked]
    assert isinstance(run.model, Seq2Seq), "a translator writes"
    return run.model, Work([(batch.source_BK, batch.source_length_B) for batch in batches], None)


def contestants(model: Seq2Seq, folder: Path, threads: int, engines: ExitStack) -> dict[str, Way]:
    """Build every way of writing."""
    silent = sorted({model.config.pad, model.config.begin} - {model.config.end})
    found: dict[str, Way] = {}
    for name, dtype in TYPES.items():
        found[f"transformers {name}"] = peer(marian(model).to(dtype), silent)
        found[f"headwise {name}"] = ours(for_inference(model, dtype=dtype), silent)
    export_ctranslate2(model, Names(model.config.target_vocabulary), folder / "ctranslate2")
    for kind in ("float32", "int8"):
        for workers in dict.fromkeys((1, threads)):
            each = threads // workers
            way = engine([str(folder / "ctranslate2"), kind, str(workers), str(each)], silent)
            found[f"CTranslate2 {kind} {workers} x {each}"] = engines.enter_context(way)
    return found


def marian(model: Seq2Seq) -> Any:
    """Give the same model to transformers."""
    ours, encoder = model.config, model.config.encoder
    sides = {"encoder": (encoder.layers, encoder.d_ff), "decoder": (ours.decoder.layers, ours.decoder.d_ff)}
    sizes = {f"{side}_layers": layers for side, (layers, _) in sides.items()}
    sizes |= {f"{side}_ffn_dim": d_ff for side, (_, d_ff) in sides.items()}
    sizes |= {f"{side}_attention_heads": len(encoder.heads[0]) for side in sides}
    config = transformers.MarianConfig(
        vocab_size=encoder.vocabulary,
        d_model=encoder.d_model,
        scale_embedding=encoder.scale_embedding,
        activation_function={"silu": "swish"}.get(encoder.activation, encoder.activation),
        pad_token_id=ours.pad,
        decoder_start_token_id=ours.begin,
        eos_token_id=ours.end,
        forced_eos_token_id=None,
        **sizes,
    )
    theirs = transformers.MarianMTModel(config).eval()
    named = {f"model.{their_name(name)}": tensor for name, tensor in model.state_dict().items()}
    missing, unknown = theirs.load_state_dict(named, strict=False)
    made = ("embed_tokens.weight", "embed_positions.weight", "lm_head.weight", "final_logits_bias")
    if unknown or not all(name.endswith(made) for name in missing):
        raise SystemExit(f"the model must have Marian's shape; it has {unknown}, and not {missing}. Train another.")
    return theirs


def their_name(name: str) -> str:
    for ours, theirs in THEIRS:
        name = name.replace(ours, theirs)
    return name


def peer(model: Any, silent: Sequence[int]) -> Way:
    def write(work: Work, beams: int) -> Texts:
        return [text for batch in work.batches for text in of_batch(*batch, work, beams)]

    def of_batch(source_BK: Tensor, length_B: Tensor, work: Work, beams: int) -> Texts:
        written_BT = model.generate(
            source_BK,
            attention_mask=(torch.arange(source_BK.shape[1]) < length_B[:, None]).long(),
            num_beams=beams,
            do_sample=False,
            min_new_tokens=work.fewest,
            max_new_tokens=work.most,
            suppress_tokens=silent,
        )
        return [ended(row, model.config.eos_token_id) for row in written_BT[:, 1:].tolist()]

    return write


def ended(ids: list[int], end: int) -> tuple[int, ...]:
    """Leave out what stands after the end."""
    return tuple(ids[: ids.index(end)] if end in ids else ids)


def ours(model: Seq2Seq, silent: Sequence[int]) -> Way:
    def write(work: Work, beams: int) -> Texts:
        lengths = {"min_length": work.fewest, "max_length": work.most, "max_ratio": None}
        decoding = read(Decoding, {"beams": beams, "suppress": silent, "stop": "early", **lengths})
        written = (
            decode([model], *batch, decoding, begin=model.config.begin, end=model.config.end) for batch in work.batches
        )
        return [found[0].ids for texts in written for found in texts]

    return write


@contextmanager
def engine(command: Sequence[str], silent: Sequence[int]) -> Iterator[Way]:
    """Ask CTranslate2, in a process of its own, by lines of JSON."""
    program = [sys.executable, str(Path(__file__).with_name("engine.py")), *command]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        asking, answering = process.stdin, process.stdout
        assert asking is not None, "a pipe"
        assert answering is not None, "a pipe"

        def write(work: Work, beams: int) -> Texts:
            texts: Texts = []
            for source_BK, length_B in work.batches:
                rows = zip(source_BK.tolist(), length_B.tolist(), strict=True)
                sources = [row[: length - 1] for row, length in rows]  # it puts the end token there
                asked = {"sources": sources, "beams": beams, "silent": silent, "lengths": [work.fewest, work.most]}
                asking.write(json.dumps(asked) + "\n")
                texts += map(tuple, json.loads(answering.readline()))
            return texts

        yield write
        asking.close()


def measure(report: Report, work: Work, ways: dict[str, Way], beams: int, rounds: int) -> None:
    """Write with all of them in turn, and add a table."""
    written = {name: way(work, beams) for name, way in ways.items()}
    took = side_by_side([Contestant(name, calling(way, work, beams)) for name, way in ways.items()], rounds)
    ends = "texts end by themselves" if work.forced is None else f"{work.forced} tokens each"
    report.section(f"{beams} beam{'s' * (beams > 1)}, {ends}")
    report.table("way", "tokens/s", "x transformers", f"equal of {len(written['headwise float32'])}")
    speed = {name: 1e3 * tokens(written[name], work) / took[name] for name in ways}
    for name in ways:
        against = f"transformers {'bfloat16' if 'bfloat16' in name else 'float32'}"
        same = equal(written[name], written["transformers float32"])
        report.row(name, speed[name], speed[name] / speed[against], str(same))
    if work.forced is None:
        cut = sum(len(text) == LONGEST for text in written["headwise float32"])
        report.line(f"Of these texts {cut} did not end within {LONGEST} tokens.")


def tokens(texts: Texts, work: Work) -> int:
    """Count the tokens of texts, with the end token of those that have one."""
    return sum(len(text) + (work.forced is None and len(text) < LONGEST) for text in texts)


def calling(way: Way, work: Work, beams: int) -> Callable[[], Texts]:
    return lambda: way(work, beams)


def equal(texts: Texts, others: Texts) -> int:
    return sum(text == other for text, other in zip(texts, others, strict=True))


if __name__ == "__main__":
    main()
