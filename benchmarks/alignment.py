"""Alignment error rate of a translator's heads on the Hansards (447 English-French pairs), beside IBM-1's.

The translator is a run on Tatoeba; the data lies in the folder that HEADWISE_DATA names. Its heads are found without
gold, as `headwise align` does; IBM-1 learns words in small letters from the same pairs. The best and the average
head are told with gold in hand.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import begin, options
from headwise import recipes
from headwise.contracts import PairBatch
from headwise.data import pairs
from headwise.recipes import Run, rewrite
from headwise.tasks.align import Aligner, Lexicon, alignment_error_rate
from headwise.tasks.guide import NEARNESS
from headwise.training import Runtime, start

Links = list[set[tuple[int, int]]]

_PART = re.compile(r"\w+|[^\w\s]")


class Gold(NamedTuple):
    """Hold pairs of texts with the links that people gave them."""

    sources: list[str]
    targets: list[str]
    sure: Links
    possible: Links


def gold_of(path: Path) -> Gold:
    """Read a table with the columns src, tgt and gold, `1-2` for a sure link and `1p2` for a possible one."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sure, possible = ([_links(row["gold"], mark) for row in rows] for mark in "-p")
    return Gold([row["src"] for row in rows], [row["tgt"] for row in rows], sure, possible)


def _links(told: str, mark: str) -> set[tuple[int, int]]:
    parts = [link.split(mark) for link in told.split() if mark in link]
    return {(int(source) - 1, int(target) - 1) for source, target in parts}


def word_links(known: Iterable[tuple[str, str]], asked: Iterable[tuple[str, str]], *, nearness: float = 0.0) -> Links:
    """Link every target word to its likeliest source word, or to none, by IBM-1 learned from the known pairs alone."""
    ids: dict[str, int] = {}
    lexicon = Lexicon((_batch(*pair, ids) for pair in known), nearness=nearness)
    found: Links = []
    for source, target in asked:
        share_TK = lexicon.posterior(_batch(source, target, ids))[0]
        best_T, place_T = share_TK.max(-1)
        linked_T = best_T > 1 - share_TK.sum(-1)
        source_word, target_word = _words_of(source), _words_of(target)
        found.append({(source_word[int(place_T[t])], target_word[t]) for t in linked_T.nonzero()[:, 0].tolist()})
    return found


def _batch(source: str, target: str, ids: dict[str, int]) -> PairBatch:
    read, written = (
        [ids.setdefault(part, len(ids)) for part in _PART.findall(text.lower())] for text in (source, target)
    )
    lengths = torch.tensor([len(read)]), torch.tensor([len(written) + 2])
    return PairBatch(torch.tensor([read]), lengths[0], torch.tensor([[0, *written, 0]]), lengths[1], torch.tensor([0]))


def _words_of(text: str) -> list[int]:
    """Tell for each part of a text, as IBM-1 sees it, which word between spaces it is part of."""
    return [i for i, word in enumerate(text.split()) for _ in _PART.findall(word.lower())]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--run", type=Path, help="folder of the translator's run")
    parser.add_argument("--train", type=Path, help="its data (default: tatoeba/en-fr.tsv.gz)")
    parser.add_argument("--gold", type=Path, help="pairs with their links (default: align/enfr.tsv)")
    chosen = parser.parse_args()
    with start(threads=chosen.threads) as runtime, tempfile.TemporaryDirectory() as passing:
        if chosen.quick:
            small(chosen, Path(passing), runtime)
        else:
            complete(chosen, parser)
        compare(chosen, recipes.open_run(chosen.run), runtime)


def complete(chosen: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Fill in where the data lies."""
    data = os.environ.get("HEADWISE_DATA")
    if chosen.run is None or (data is None and None in (chosen.train, chosen.gold)):
        parser.error("a run must be named, and the data lie in the folder that HEADWISE_DATA names or be named too")
    chosen.train = chosen.train or Path(data or "") / "tatoeba/en-fr.tsv.gz"
    chosen.gold = chosen.gold or Path(data or "") / "align/enfr.tsv"


def small(chosen: argparse.Namespace, folder: Path, runtime: Runtime) -> None:
    """Train for two steps on the bundled pairs, and take first words to belong together."""
    chosen.run, chosen.train, chosen.gold = folder / "run", pairs("en-fr"), folder / "gold.tsv"
    tiny = ("d_model=16", "layers=2", "heads=2", "d_ff=16")
    changes = [
        "data.source_column=en",
        "data.target_column=fr",
        "training.steps=2",
        *(f"model.encoder.{each}" for each in tiny),
    ]
    planned = recipes.plan(str(chosen.train), recipes.resolve("translation", overrides=changes))
    recipes.train(planned, chosen.run, runtime)
    chosen.gold.write_text("src\ttgt\tgold\na dog\tun chien\t1-1 2p2\nyes .\toui .\t1-1\n", encoding="utf-8")


def compare(chosen: argparse.Namespace, run: Run, runtime: Runtime) -> None:
    """Count the wrong and missing links of each way, and keep the table."""
    report, gold = begin("Word alignment without gold", chosen), gold_of(chosen.gold)
    source = str(chosen.train)
    aligner = recipes.find_aligner(run, source, runtime, split="train")

    def rate(aligner: Aligner) -> float:
        found = recipes.align_texts(run, aligner, gold.sources, gold.targets, runtime)
        return 100 * alignment_error_rate([each.links for each in found], gold.sure, gold.possible)

    known = list(zip(*rewrite.texts_of(run, source, split="train", quiet=True), strict=True))
    asked = list(zip(gold.sources, gold.targets, strict=True))
    words, near = (word_links(known, asked, nearness=nearness) for nearness in (0.0, NEARNESS))
    alone = {head: rate(replace(aligner, heads=(head,))) for head in aligner.table}
    best = min(alone, key=alone.__getitem__)
    report.table("links of", "error rate, %")
    report.row("the heads that were chosen", rate(aligner))
    report.row("the first of them alone", alone[aligner.heads[0]])
    report.row("IBM-1, the same pairs", 100 * alignment_error_rate(words, gold.sure, gold.possible))
    report.row("the same, near words preferred", 100 * alignment_error_rate(near, gold.sure, gold.possible))
    report.row("the best head, gold in hand", alone[best])
    report.row("the average head", sum(alone.values()) / len(alone))
    report.line(f"Chosen: {'; '.join(str(aligner).splitlines())}. Best with gold: {best.place} head {best.head}.")


if __name__ == "__main__":
    main()
