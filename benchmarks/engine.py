"""Translate with CTranslate2 what comes in lines of JSON: python benchmarks/engine.py MODEL TYPE WORKERS THREADS.

Each line tells sources, each a list of ids, and the rules of a search; each answer is a line with the ids of the texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ctranslate2


def main() -> None:
    folder, kind, workers, threads = sys.argv[1:]
    setting = {"compute_type": kind, "inter_threads": int(workers), "intra_threads": int(threads)}
    translator = ctranslate2.Translator(folder, **setting)
    for line in sys.stdin:
        print(json.dumps(answered(translator, json.loads(line), int(workers))), flush=True)


def answered(translator: Any, asked: dict[str, Any], workers: int) -> list[list[int]]:
    sources = [list(map(str, row)) for row in asked["sources"]]
    fewest, most = asked["lengths"]
    found = translator.translate_batch(
        sources,
        beam_size=asked["beams"],
        min_decoding_length=fewest,
        max_decoding_length=most,
        suppress_sequences=[[str(i)] for i in asked["silent"]],
        max_batch_size=-(-len(sources) // workers),
    )
    return [list(map(int, each.hypotheses[0])) for each in found]


if __name__ == "__main__":
    main()
