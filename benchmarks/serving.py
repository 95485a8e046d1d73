"""Load a service, with and without batching, beside the same model behind a plain FastAPI handler.

    python benchmarks/serving.py runs/demo/en --write

Every server answers over loopback, one text a request. The load comes from `wrk` where that is installed, which hardly
takes from the two cores that server and load share, else from as many threads with plain sockets. The plain handler
is tried as `def` and as `async def`, with one process on all threads and one process a core; its best is shown.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.common import ROOT, begin, options
from headwise import Classifier, ClassifierConfig, EncoderConfig, save
from headwise.contracts.files import write_whole
from headwise.data import reviews
from headwise.models import preset
from headwise.models.checkpoint import read_config
from headwise.recipes.config import written_run
from headwise.recipes.resolve import resolve
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.tokenizer import Tokenizer

TEXTS = (
    "What a lovely film, I would see it again.",
    "Not the disaster I had feared.",
    "A dull and lifeless story that never finds its feet.",
    "The acting is fine but the plot is thin.",
)
CLIENTS = (1, 8, 64)
PLAIN = (("async def", 1), ("async def", 2), ("def", 1), ("def", 2))

_PLAIN = """
import sys, torch
from dataclasses import asdict
from pathlib import Path
from fastapi import FastAPI
from pydantic import BaseModel
from headwise import recipes
from headwise.training import start

torch.set_num_threads(int(sys.argv[3]))
run = recipes.open_run(Path(sys.argv[1]))
runtime = start("cpu", run.config.training.precision)
app = FastAPI()

class Asked(BaseModel):
    texts: list[str]

if sys.argv[2] == "async def":
    @app.post("/v1/predict")
    async def predict(asked: Asked):
        return [answer._asdict() for answer in recipes.predict_texts(run, asked.texts, runtime)]
else:
    @app.post("/v1/predict")
    def predict(asked: Asked):
        return [answer._asdict() for answer in recipes.predict_texts(run, asked.texts, runtime)]

@app.get("/ready")
def ready():
    return {}

import socket, uvicorn
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listening.bind(("127.0.0.1", int(sys.argv[4])))
listening.listen(2048)
uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="error")).run(sockets=[listening])
"""


class Load(NamedTuple):
    """Hold what a load found."""

    rate: float
    """Answers of status 200 a second."""
    half: float
    """Milliseconds in which half of all answers came."""
    most: float
    """Milliseconds in which 99 of 100 came."""
    refused: int
    """Answers of status 503."""
    others: int
    """Answers of yet another status."""


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def running(port: int, commands: Sequence[Sequence[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run servers until they answer, and end them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in commands]
    try:
        for _ in range(600):
            if answers(port):
                break
            time.sleep(0.1)
        time.sleep(1)  # so that the others of several processes answer too
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def ours(folder: Path, port: int, workers: int, *settings: str) -> list[list[str]]:
    sets = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "headwise", "serve", str(folder), "--port", str(port), "--device", "cpu"]
    return [[*command, "--quiet", "--workers", str(workers), *sets]]


def plain(folder: Path, port: int, kind: str, processes: int) -> list[list[str]]:
    threads = max(1, torch.get_num_threads() // processes)
    return [[sys.executable, "-c", _PLAIN, str(folder), kind, str(threads), str(port)]] * processes


def load(port: int, clients: int, seconds: float) -> Load:
    """Ask with so many clients, each for its next answer as soon as it has the last."""
    return _wrk(port, clients, seconds) if shutil.which("wrk") else _threads(port, clients, seconds)


_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local texts, at, threads = {%s}, 0, {}
request = function()
  at = at + 1
  return wrk.format(nil, nil, nil, '{"texts":["' .. texts[at %% #texts + 1] .. '"]}')
end
setup = function(thread) table.insert(threads, thread) end
init = function() answered, refused, others = 0, 0, 0 end
response = function(status)
  if status == 200 then answered = answered + 1 elseif status == 503 then refused = refused + 1
  else others = others + 1 end
end
done = function(summary, latency)
  local found = threads[1]
  io.write(string.format("found %%d %%d %%d %%.3f %%.3f %%.3f\\n", found:get("answered"), found:get("refused"),
    found:get("others"), summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


def _wrk(port: int, clients: int, seconds: float) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT % ", ".join(f'"{text}"' for text in TEXTS))
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", script.name]
        told = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/v1/predict"], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"found (\d+) (\d+) (\d+) (\S+) (\S+) (\S+)", told)
    assert found is not None, told
    answered, refused, others, took, half, most = map(float, found.groups())
    return Load(answered / took, half, most, int(refused), int(others))


def _threads(port: int, clients: int, seconds: float) -> Load:
    end, statuses, took = time.monotonic() + seconds, Counter[int](), list[float]()

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        at = first
        while time.monotonic() < end:
            at += 1
            began = time.perf_counter()
            content = json.dumps({"texts": [TEXTS[at % len(TEXTS)]]})
            connection.request("POST", "/v1/predict", content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            statuses[response.status] += 1
            took.append(1e3 * (time.perf_counter() - began))
        connection.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ordered = sorted(took)
    rate, refused = statuses.pop(200, 0) / seconds, statuses.pop(503, 0)
    most = ordered[int(0.99 * (len(ordered) - 1))]
    return Load(rate, float(np.median(ordered)), most, refused, sum(statuses.values()))


def resident(process: subprocess.Popen[bytes]) -> float:
    """Sum the memory of a process and its children in MB, what they share divided among them."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (process.pid, *children))
    return sum(int(re.search(r"^Pss:\s+(\d+)", each, re.MULTILINE)[1]) for each in found) / 1024  # type: ignore[index]


def untrained(folder: Path) -> Path:
    """Write a run with random weights: it takes as long as a trained one."""
    texts = [line.partition("\t")[2] for line in reviews("en").read_text(encoding="utf-8").splitlines()[1:]]
    tokenizer = Tokenizer.train(texts, TokenizerSettings(kind="words"))
    encoder = EncoderConfig(vocabulary=tokenizer.size, **preset("tiny"))
    save(Classifier(ClassifierConfig(encoder, classes=("bad", "good"))), folder)
    tokenizer.save(folder / "tokenizer.json")
    write_whole(folder / "run.json", written_run(resolve("sentiment")))
    return folder


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="a trained classifier (default: random weights, size tiny)")
    parser.add_argument("--seconds", type=float, default=5, help="seconds of each load (default: 5)")
    parser.add_argument("--overload", type=int, metavar="N", help="loads of overload, and nothing else (default: 3)")
    chosen = parser.parse_args()
    report = begin("A service under load", chosen)
    seconds, clients = (0.5, (1, 4)) if chosen.quick else (chosen.seconds, CLIENTS)
    with tempfile.TemporaryDirectory() as made:
        folder = chosen.run or untrained(Path(made) / "run")
        encoder = read_config(folder)["settings"]["encoder"]
        heads = len(encoder["heads"][0])
        report.line(f"- model: {encoder['layers']} layers of width {encoder['d_model']}, {heads} heads in the first")
        if chosen.overload is None:
            compare(report, folder, clients, seconds, quick=chosen.quick)
        overload(report, folder, max(clients), seconds, chosen.overload or 3)


def compare(report, folder, clients, seconds, *, quick):
    """Show every server at every number of clients."""
    report.section("One text a request")
    report.table("server", *(f"{n} clients: {name}" for n in clients for name in ("1/s", "p50 ms", "p99 ms")))
    found = {}
    tries = PLAIN[:1] if quick else PLAIN
    candidates = {f"plain handler, {kind}, {n} processes": ("plain", kind, n) for kind, n in tries}
    candidates |= {
        "headwise serve, nothing together": ("ours", 1, "limits.batch_tokens=1", "limits.linger=0"),
        "headwise serve": ("ours", 1),
        "headwise serve, 2 workers": ("ours", 2),
    }
    for name, (kind, *how) in candidates.items():
        port = free_port()
        with running(port, (plain if kind == "plain" else ours)(folder, port, *how)):
            load(port, 2, 1)
            found[name] = [load(port, n, seconds) for n in clients]
        report.row(name, *_cells(found[name]))
    rates = {name: loads[-1].rate for name, loads in found.items()}
    best = max((name for name in rates if name.startswith("plain")), key=rates.__getitem__)
    mine = max((name for name in rates if name.startswith("headwise")), key=rates.__getitem__)
    told = f"At {clients[-1]} clients `{mine}` answers {rates[mine] / rates[best]:.1f} times as often as {best}."
    report.line(told)


def _cells(loads):
    return [cell for found in loads for cell in (found.rate, found.half, found.most)]


def overload(report, folder, clients, seconds, loads):
    """Show that a service which is asked for four times of what it can do goes on doing it, beside its best.

    The best is measured before and after each load: the machine's own speed may change from minute to minute.
    """
    report.section("Asked for more than it can do")
    queue = max(1, clients // 2)
    columns = "1/s", "p50 ms", "p99 ms", "503", "other"
    report.table("best: 1/s", *(f"{4 * queue} clients: {name}" for name in columns), "of the best", "MB")
    port, shares = free_port(), []
    with running(port, ours(folder, port, 1, f"limits.queue={queue}")) as (process,):
        load(port, queue, 1)
        before = load(port, queue, seconds / 2).rate
        for _ in range(loads):
            found, after = load(port, 4 * queue, seconds), load(port, queue, seconds / 2).rate
            best, before = (before + after) / 2, after
            shares.append(found.rate / best)
            report.row(f"{best:.0f}", *map(float, found), shares[-1], resident(process))
    report.line(f"A worker holds at most {queue} requests here; rates are of answers with status 200.")
    report.line(f"The best is the rate with {queue} clients, the mean of {seconds / 2:g} seconds before and after.")
    report.line(f"Served of the best: {np.mean(shares):.2f} on average, {min(shares):.2f} to {max(shares):.2f}.")


if __name__ == "__main__":
    main()
