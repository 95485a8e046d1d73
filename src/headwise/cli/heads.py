"""See, score, cut and share heads, and compare numbers of them, from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwise import recipes
from headwise.cli.shared import (
    add_columns,
    add_data,
    add_out,
    add_task,
    check_target,
    command,
    data_settings,
    numbers,
    positive,
    source,
    splits,
)
from headwise.contracts.files import write_whole
from headwise.errors import InputError
from headwise.heads import HeadScores
from headwise.recipes.kinds import KINDS
from headwise.training import Runtime, start

__all__ = ["add_compare", "add_observe", "add_prune", "add_score", "add_share"]


def add_observe(commands: Any) -> None:
    """Add `headwise observe`."""
    example = "runs/first --data test.tsv"
    parser = command(commands, "observe", _observe, "see what every head of a model does on texts", example)
    _add_model(parser, data="table, folder or hub:NAME; files of lines for pairs")
    parser.add_argument("--page", type=Path, metavar="HTML", help="the page; heads.html in the run, or here")
    parser.add_argument("--texts", type=_count, default=4, metavar="N", help="texts to draw; 4 by default, 0 for none")
    parser.add_argument("--before", metavar="MODEL", help="the model before heads were cut, to stand beside")
    parser.add_argument("--json", action="store_true", help="the table with its sums, as JSON")


def add_score(commands: Any) -> None:
    """Add `headwise score`."""
    parser = command(commands, "score", _score, "score every head of a model", "runs/first --data dev.tsv")
    _add_model(parser)
    _add_way(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="file of the scores, as JSON; else the terminal")


def add_prune(commands: Any) -> None:
    """Add `headwise prune`."""
    example = "runs/first --data dev.tsv --keep 0.6 --train train.tsv --out runs/smaller"
    parser = command(commands, "prune", _prune, "cut the heads that a model needs least", example)
    _add_model(parser)
    _add_way(parser)
    parser.add_argument("--scores", type=Path, metavar="FILE", help="scores of before; else they are computed")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--keep", type=float, metavar="PART", help="part of the heads that stays; 0.6 by default")
    limits.add_argument("--parameters", type=int, metavar="N", help="most parameters")
    limits.add_argument("--milliseconds", type=float, metavar="MS", help="longest time of a batch, measured here")
    limits.add_argument("--loss", type=float, metavar="L", help="largest growth of the loss; fewest heads within it")
    _add_further(parser)


def add_share(commands: Any) -> None:
    """Add `headwise share`."""
    example = "runs/first --kv-heads 2 --train train.tsv --out runs/shared"
    parser = command(commands, "share", _share, "let heads share keys and values", example)
    _add_model(parser, required=False)
    parser.add_argument("--kv-heads", type=int, required=True, metavar="N", help="key and value heads of each layer")
    told = "their mean, or the best of those that become one, by its gradients on --data"
    parser.add_argument("--by", choices=("mean", "best"), default="mean", metavar="WAY", help=told)
    _add_further(parser)


def add_compare(commands: Any) -> None:
    """Add `headwise compare`."""
    example = "sentiment --data train.tsv --dev dev.tsv --heads 1,2,4,8 --seeds 3 --out runs/compared"
    parser = command(commands, "compare", _compare, "compare one head with many, at equal parameters", example)
    parser.add_argument("task", choices=tuple(KINDS), metavar="TASK", help=", ".join(KINDS))
    add_data(parser, "--data", "table, folder or hub:NAME; two files of lines for pairs", required=True)
    add_data(parser, "--dev", "texts that choose the models; a tenth of the data by default")
    parser.add_argument("--heads", type=numbers, default=(1, 2, 4, 8), metavar="N,N", help="1,2,4,8 by default")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs of each, from seed 0 on")
    add_out(parser, "folder of the runs, table and plot")
    parser.add_argument("--config", type=Path, metavar="TOML", help="file of settings")
    _add_set(parser, "such as training.passes=5")
    add_columns(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text}. 0 is none.")
    return int(text)


def _add_model(
    parser: argparse.ArgumentParser, *, required: bool = True, data: str = "texts with their answers"
) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run, a folder of Transformers, or a name on its hub")
    add_data(parser, "--data", data, required=required)
    parser.add_argument("--split", metavar="NAME", help="rows of this split only")
    add_task(parser)
    add_columns(parser)


def _add_way(parser: argparse.ArgumentParser) -> None:
    ways = ("gradient", "ablation", "gates", "random")
    parser.add_argument("--by", choices=ways, default="gradient", metavar="WAY", help=f"{', '.join(ways)}")


def _add_further(parser: argparse.ArgumentParser) -> None:
    add_out(parser, "folder of the smaller model")
    add_data(parser, "--train", "train the smaller model on these; runs of headwise only")
    add_data(parser, "--dev", "texts that choose among its states; a part of --train by default")
    parser.add_argument("--passes", type=positive, metavar="N", help="passes of that training; 1 by default")
    _add_set(parser, "such as training.learning_rate=1e-4; else it is trained as the whole model was")


def _add_set(parser: argparse.ArgumentParser, told: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=told)


def _opened(chosen: Any, name: str) -> recipes.Subject:
    return recipes.open_subject(name, data_settings(chosen), task=chosen.task)


def _observe(chosen: Any) -> None:
    run = Path(chosen.model)
    page = chosen.page or ((run if (run / "run.json").is_file() else Path()) / "heads.html")
    check_target(page, "--page", chosen.data)
    subject, data = _opened(chosen, chosen.model), source(chosen.data)
    with start(chosen.device, subject.precision, threads=chosen.threads) as runtime:
        before = None
        if chosen.before:
            older = _opened(chosen, chosen.before)
            before = recipes.look(older, data, runtime, split=chosen.split)
        about = f"{chosen.model} on {' and '.join(chosen.data)}"
        given: dict[str, Any] = {"split": chosen.split, "texts": chosen.texts, "before": before, "about": about}
        report = recipes.report(subject, data, runtime, **given)
    if not runtime.first:
        return
    report.write(page)
    print(report.table.to_json() if chosen.json else report.table)
    print(f"the page is {page}", file=sys.stderr)


def _scores(chosen: Any, subject: recipes.Subject, runtime: Runtime) -> HeadScores:
    if chosen.by == "gates":
        return recipes.learned_scores(Path(chosen.model))
    return recipes.score(subject, source(chosen.data), runtime, by=chosen.by, split=chosen.split)


def _score(chosen: Any) -> None:
    check_target(chosen.output, "--output", chosen.data)
    subject = _opened(chosen, chosen.model)
    with start(chosen.device, threads=chosen.threads) as runtime:
        scores = _scores(chosen, subject, runtime)
    if chosen.output is None:
        print(scores)
    else:
        write_whole(chosen.output, (scores.to_json() + "\n").encode())


def _prune(chosen: Any) -> None:
    subject = _opened_to_change(chosen)
    with start(chosen.device, threads=chosen.threads) as runtime:
        recipes.alone(runtime, "a model must be cut")
        if chosen.scores is None:
            scores = _scores(chosen, subject, runtime)
        elif chosen.scores.is_file():
            scores = HeadScores.from_json(chosen.scores.read_bytes())
        else:
            raise InputError(f"`--scores` must be a file of `headwise score`; got {chosen.scores}. Check the path.")
        names = ("keep", "parameters", "milliseconds", "loss")
        limits = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None} or {"keep": 0.6}
        data = source(chosen.data)
        losses = [recipes.mean_loss(subject, data, runtime, split=chosen.split)]
        plan = recipes.plan_heads(subject, scores, recipes.Limit(**limits), data, runtime, split=chosen.split)
        print(plan)
        smaller = _trained(chosen, subject, runtime, recipes.prune(subject, plan, _target(chosen)))
        losses.append(recipes.mean_loss(smaller, data, runtime, split=chosen.split))
        _print_losses(("whole", "smaller"), (subject, smaller), losses)
    print(f"the smaller model is in {chosen.out}")


def _share(chosen: Any) -> None:
    if chosen.by == "best" and chosen.data is None:
        raise InputError("the best heads are found on data; got none. Name texts with their answers by --data.")
    subject = _opened_to_change(chosen)
    with start(chosen.device, threads=chosen.threads) as runtime:
        recipes.alone(runtime, "heads must be shared")
        scores, losses = None, []
        if chosen.by == "best":
            scores = recipes.score(subject, source(chosen.data), runtime, split=chosen.split)
        if chosen.data is not None:
            losses.append(recipes.mean_loss(subject, source(chosen.data), runtime, split=chosen.split))
        shared = _trained(chosen, subject, runtime, recipes.share(subject, chosen.kv_heads, _target(chosen), scores))
        if chosen.data is not None:
            losses.append(recipes.mean_loss(shared, source(chosen.data), runtime, split=chosen.split))
        _print_losses(("whole", "shared"), (subject, shared), losses)
    print(f"the model is in {chosen.out}")


def _print_losses(names: Sequence[str], subjects: Sequence[recipes.Subject], losses: Sequence[float]) -> None:
    for name, each, loss in zip(names, subjects, losses, strict=False):
        print(f"{name}: loss {loss:.4f}, {recipes.parameters(each.model):,} parameters")


def _opened_to_change(chosen: Any) -> recipes.Subject:
    """Open the model to be made smaller, when the folder and the further training can be what they are to be."""
    for folder in {chosen.out, _target(chosen)}:
        recipes.check_out(folder, resume=None)
    told = [
        flag for flag, given in (("--passes", chosen.passes), ("--set", chosen.set), ("--dev", chosen.dev)) if given
    ]
    if told and not chosen.train:
        raise InputError(f"{', '.join(told)} must go with `--train`; got no texts to train on. Name them.")
    subject = _opened(chosen, chosen.model)
    if chosen.train:
        recipes.further(subject, passes=chosen.passes or 1, overrides=chosen.set)
    return subject


def _target(chosen: Any) -> Path:
    """Give the folder of what was not trained yet: beside that of the trained one, where there is to be one."""
    out: Path = chosen.out
    return out / "untrained" if chosen.train else out


def _trained(chosen: Any, before: recipes.Subject, runtime: Runtime, smaller: recipes.Subject) -> recipes.Subject:
    if not chosen.train:
        return smaller
    asked: dict[str, Any] = {"passes": chosen.passes or 1, "overrides": chosen.set, "quiet": chosen.quiet}
    recipes.train_on(smaller, splits(chosen.train, chosen.dev), chosen.out, runtime, **asked)
    return recipes.open_subject(str(chosen.out), data_settings(chosen))


def _compare(chosen: Any) -> None:
    settings = {
        heads: [
            recipes.resolve(
                chosen.task,
                file=chosen.config,
                given={"data": data_settings(chosen)},
                overrides=[*chosen.set, f"model.encoder.heads={heads}", f"training.seed={seed}"],
            )
            for seed in range(chosen.seeds)
        ]
        for heads in chosen.heads
    }
    found = []
    training = settings[chosen.heads[0]][0].training
    with start(chosen.device, training.precision, threads=chosen.threads or training.threads) as runtime:
        for each in recipes.compare(splits(chosen.data, chosen.dev), settings, chosen.out, runtime, quiet=chosen.quiet):
            found.append(each)
            figures = ", ".join(f"{name} {value:.4f}" for name, value in each.figures.items())
            print(f"{each.heads} heads, seed {each.seed}: {figures}; gap {each.gap:.4f}; {each.seconds:.0f} s")
    figure = training.keep_best or next(iter(found[0].figures))
    for row in recipes.table_of(found, figure):
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    for path in recipes.write_comparison(found, figure, chosen.out):
        print(path, file=sys.stderr)
