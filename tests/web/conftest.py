"""A tiny classifier with random weights, and services that answer with it."""

import logging
from contextlib import ExitStack

import pytest
import torch
from starlette.testclient import TestClient

from headwise import Classifier, ClassifierConfig, EncoderConfig, Seq2Seq, Seq2SeqConfig, save
from headwise.contracts.files import write_whole
from headwise.recipes import Run
from headwise.recipes.config import written_run
from headwise.recipes.resolve import resolve
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import start
from headwise.web import Limits, ServeConfig, application, served

HERE = "http://127.0.0.1"
TEXTS = ["a lovely film", "a dull film", "the ending is lovely but the rest is cold", "等了两个小时才上菜"]
PLACE = "encoder.layers.0.attention.attend"


def tiny_run():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS, TokenizerSettings(kind="words", chinese="characters"))
    encoder = EncoderConfig(vocabulary=tokenizer.size, d_model=16, layers=2, heads=2, d_ff=16)
    model = Classifier(ClassifierConfig(encoder, classes=("bad", "good"))).eval()
    with torch.no_grad():
        model.output.weight.mul_(40)
    config = resolve("sentiment", overrides=["training.precision=float32", "data.max_tokens=64"])
    return Run(config, model, tokenizer)


@pytest.fixture(autouse=True)
def _as_before():
    """Put back what a command sets for its process."""
    threads, logger = torch.get_num_threads(), logging.getLogger("headwise")
    handlers, level = logger.handlers, logger.level
    yield
    torch.set_num_threads(threads)
    logger.handlers = handlers
    logger.setLevel(level)


def tiny_writer(task="translation"):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS, TokenizerSettings(kind="words", chinese="characters"))
    encoder = EncoderConfig(vocabulary=tokenizer.size, d_model=16, layers=1, heads=2, d_ff=16)
    ends = {"begin": tokenizer.begin_id, "end": tokenizer.end_id, "pad": 0}
    model = Seq2Seq(Seq2SeqConfig(encoder, target_vocabulary=tokenizer.size, **ends)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    settings = ["training.precision=float32", "data.max_source=32", "decoding.max_length=12"]
    return Run(resolve(task, overrides=settings), model, tokenizer)


@pytest.fixture(scope="session")
def writer():
    return tiny_writer()


@pytest.fixture(scope="session")
def run():
    return tiny_run()


def written(run, out):
    """Write a run as `headwise train` does."""
    save(run.model, out)
    run.tokenizer.save(out / "tokenizer.json")
    write_whole(out / "run.json", written_run(run.config))
    return out


@pytest.fixture(scope="session")
def folder(run, tmp_path_factory):
    return written(run, tmp_path_factory.mktemp("runs") / "tiny")


def serving(models, config):
    """Serve in this process."""
    return TestClient(application(models, config), base_url=HERE, raise_server_exceptions=False)


@pytest.fixture(scope="session")
def usual(run):
    """Serve as it is by default, for all tests that leave no trace in it."""
    models = {"tiny": served("tiny", run, start("cpu", "float32"), Limits())}
    with serving(models, ServeConfig()) as made:
        yield made


@pytest.fixture
def client(run, usual):
    """Serve with settings of one's own; without any, the usual service."""
    with ExitStack() as opened:

        def own(*, models=None, limits=None, **settings):
            if models is None and limits is None and not settings:
                return usual
            config = ServeConfig(limits=Limits(**(limits or {})), **settings)
            models = models or {"tiny": served("tiny", run, start("cpu", "float32"), config.limits)}
            return opened.enter_context(serving(models, config))

        yield own
