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
    print(recipes.look(run, "test.tsv", runtime))
```
"""

from headwise.recipes.config import RunConfig, resolve
from headwise.recipes.demo import demo
from headwise.recipes.describe import describe
from headwise.recipes.doctor import doctor
from headwise.recipes.evaluate import evaluate, line, look, predict, predict_texts
from headwise.recipes.pair_config import PairConfig
from headwise.recipes.plans import Plan
from headwise.recipes.run import Run, check_out, open_run, with_data
from headwise.recipes.train import plan, train
from headwise.recipes.tune import tune

__all__ = [
    "PairConfig",
    "Plan",
    "Run",
    "RunConfig",
    "check_out",
    "demo",
    "describe",
    "doctor",
    "evaluate",
    "line",
    "look",
    "open_run",
    "plan",
    "predict",
    "predict_texts",
    "resolve",
    "train",
    "tune",
    "with_data",
]
