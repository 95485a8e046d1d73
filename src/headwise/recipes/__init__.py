"""Join the parts to what people do: train, evaluate, predict, observe.

```python
from pathlib import Path
from headwise import recipes
from headwise.training import start

with start() as runtime:
    planned = recipes.plan("train.tsv", recipes.resolve("sentiment", init="pretrained:minilm"))
    recipes.train(planned, Path("runs/first"), runtime)
    run = recipes.open_run(Path("runs/first"))
    print(recipes.evaluate(run, "test.tsv", runtime)["accuracy"])
    print(recipes.predict_texts(run, ["What a lovely film."], runtime)[0].label)
    print(recipes.look(recipes.Own(run), "test.tsv", runtime))
```
"""

from headwise.recipes.aligning import WordLinks, align_texts, read_aligner, save_aligner
from headwise.recipes.answers import write_answers
from headwise.recipes.compare import Compared, compare, table_of, write_comparison
from headwise.recipes.config import RunConfig
from headwise.recipes.demo import demo
from headwise.recipes.describe import describe
from headwise.recipes.doctor import doctor
from headwise.recipes.evaluate import align_pairs, evaluate, find_aligner, line, look, predict, predict_texts
from headwise.recipes.export import TYPES, export
from headwise.recipes.pair_config import PairConfig
from headwise.recipes.plans import Plan
from headwise.recipes.pretrained import open_any
from headwise.recipes.prune import Limit, further, parameters, plan_heads, prune, share, train_on
from headwise.recipes.report import report
from headwise.recipes.resolve import resolve
from headwise.recipes.run import Run, check_folder, check_out, open_run, with_data
from headwise.recipes.score import alone, learned_scores, mean_loss, score
from headwise.recipes.significance import significance
from headwise.recipes.subjects import Own, Subject, open_subject
from headwise.recipes.tour import Tour, tour
from headwise.recipes.train import plan, train
from headwise.recipes.tune import KEYS, tune

__all__ = [
    "KEYS",
    "TYPES",
    "Compared",
    "Limit",
    "Own",
    "PairConfig",
    "Plan",
    "Run",
    "RunConfig",
    "Subject",
    "Tour",
    "WordLinks",
    "align_pairs",
    "align_texts",
    "alone",
    "check_folder",
    "check_out",
    "compare",
    "demo",
    "describe",
    "doctor",
    "evaluate",
    "export",
    "find_aligner",
    "further",
    "learned_scores",
    "line",
    "look",
    "mean_loss",
    "open_any",
    "open_run",
    "open_subject",
    "parameters",
    "plan",
    "plan_heads",
    "predict",
    "predict_texts",
    "prune",
    "read_aligner",
    "report",
    "resolve",
    "save_aligner",
    "score",
    "share",
    "significance",
    "table_of",
    "tour",
    "train",
    "train_on",
    "tune",
    "with_data",
    "write_answers",
    "write_comparison",
]
