"""Broken clients, killed workers and the end of the service, with the real command in processes of its own."""

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from headwise import HeadwiseError
from headwise.cli import main
from headwise.web import workers
from tests.web.processes import WAIT, Service, everything, head, status_of, until

ASKED = {"texts": ["a lovely film"]}
QUICK = ("--set", "limits.patience=0.5", "--set", "limits.body=20000")


@pytest.fixture(scope="module")
def service(folder):
    """Serve with two workers that have little patience."""
    with Service(folder, "--workers", "2", *QUICK) as running:
        yield running


def asks_well(service):
    assert status_of(service.exchange("POST", "/v1/predict", ASKED)) == 200


def test_the_command_answers(service):
    asks_well(service)
    assert service.log[0].startswith("serving tiny on http://127.0.0.1:")


def test_counters_are_those_of_all_workers(service):
    before = counted(service)
    for _ in range(8):
        asks_well(service)
    until(lambda: counted(service) == before + 8)


def counted(service):
    told = re.search(rb'requests_total{path="/v1/predict",status="200"} (\S+)', service.exchange("GET", "/metrics"))
    return float(told[1]) if told else 0


@pytest.mark.parametrize("device", ["warp", "cuda:7"])
def test_a_device_that_is_not_there_ends_the_command(folder, device):
    line = [sys.executable, "-m", "headwise", "serve", f"tiny={folder}", "--port", "0", "--device", device]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "headwise: `device` must be" in done.stderr


def test_workers_that_cannot_live_are_not_made_without_end():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor = workers._Supervisor(lambda: 1 / 0, 1, listening)
        with pytest.raises(HeadwiseError, match="a worker must live to answer; got 5 one after the other"):
            supervisor.run()


def test_no_worker_outlives_those_that_cannot_live(tmp_path):
    first, began = tmp_path / "first", time.monotonic()

    def work():
        with first.open("x") as file:  # which only the first one can
            file.write(str(os.getpid()))
        time.sleep(WAIT)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        with pytest.raises(HeadwiseError, match="a worker must live to answer"):
            workers._Supervisor(work, 2, listening).run()
        assert has_ended(int(first.read_text()))
    assert time.monotonic() - began < WAIT / 2


def test_no_worker_outlives_one_that_cannot_be_made(monkeypatch):
    made, fork, began = [], os.fork, time.monotonic()

    def once():
        if made:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        made.append(fork())
        if made == [0]:
            time.sleep(0.3)  # until the other has failed, and this one is told to end
        return made[0]

    monkeypatch.setattr(os, "fork", once)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with pytest.raises(HeadwiseError, match=r"must find room in the system; got: .* unavailable"):
            workers._Supervisor(lambda: time.sleep(WAIT), 2, listening).run()
        assert has_ended(made[0])
    assert time.monotonic() - began < WAIT / 2


def has_ended(pid):
    """Tell whether a child has ended and somebody has seen that; if not, end it."""
    try:
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        return True
    return False


@pytest.mark.parametrize(("status", "told"), [(signal.SIGKILL, "SIGKILL"), (35, "signal 35"), (3 << 8, "exit code 3")])
def test_every_end_of_a_worker_can_be_told(status, told):
    assert workers._told(status) == told


@pytest.mark.parametrize("before", [None, "elsewhere"])
def test_the_environment_is_afterwards_as_it_was(folder, monkeypatch, before):
    name, meanwhile = "PROMETHEUS_MULTIPROC_DIR", []
    monkeypatch.setenv(name, before or "")
    if before is None:
        monkeypatch.delenv(name)

    def run(supervisor):
        meanwhile.append(Path(os.environ[name]))
        assert meanwhile[0].is_dir()
        supervisor._listening.close()

    monkeypatch.setattr(workers._Supervisor, "run", run)
    assert main(["serve", str(folder), "--port", "0"]) == 0
    assert os.environ.get(name) == before
    assert not meanwhile[0].exists()


def test_what_counts_has_to_be_installed(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve", str(folder), "--host", "203.0.113.7"]) == 2
    assert '`prometheus_client` must be installed for this; got none. Run pip install "headwise[serve]"' in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_head_that_does_not_come_is_not_waited_for(service, sent):
    with service.connect() as connection:
        connection.sendall(sent)
        assert closed(connection)
    asks_well(service)


def closed(connection):
    try:
        return everything(connection) == b""
    except ConnectionError:
        return True


def test_a_head_in_drops_is_not_waited_for(service):
    with service.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        stop = threading.Event()

        def drip():
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"X-A: b\r\n")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert closed(connection)
        stop.set()
        dripping.join()
    asks_well(service)


def test_a_head_without_end_is_cut_off(service):
    with service.connect() as connection:
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nX-A: " + b"a" * 1_000_000)
            assert status_of(everything(connection)) in (0, 400)
        except ConnectionError:
            pass
    asks_well(service)


def test_half_a_body_is_answered_with_408(service):
    with service.connect() as connection:
        connection.sendall(head("POST", "/v1/predict", 1000) + b'{"texts": [')
        assert status_of(everything(connection)) == 408
    asks_well(service)


def test_a_client_that_leaves_in_the_middle_harms_nobody(service):
    for sent in (
        head("POST", "/v1/predict", 1000) + b'{"te',
        head("POST", "/v1/predict", 26) + b'{"texts": ["a lovely film"]',
    ):
        with service.connect() as connection:
            connection.sendall(sent)
    asks_well(service)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"\0" * 1000,
    ],
)
def test_what_is_no_request_gets_no_answer_but_400(service, sent):
    with service.connect() as connection:
        try:
            connection.sendall(sent)
            assert status_of(everything(connection)) in (0, 400, 408)
        except ConnectionError:
            pass
    asks_well(service)


def test_a_body_far_too_long_gets_its_413(service):
    sent = {"texts": ["a" * 100_000]}
    assert status_of(service.exchange("POST", "/v1/predict", sent)) == 413


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_connections_at_once(service, count):
    connections = [service.connect() for _ in range(count)]
    try:
        for connection in connections:
            connection.sendall(head("GET", "/health", 0))
        assert [status_of(everything(connection)) for connection in connections] == [200] * count
    finally:
        for connection in connections:
            connection.close()


def test_another_worker_takes_the_place_of_a_killed_one(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "tiny"))
    with Service(copied, "--workers", "2") as service:
        # Models are read once, before there are workers, which all share them: a new one needs no file.
        shutil.rmtree(copied)
        found, stop = [], threading.Event()

        def load():
            while not stop.is_set():
                found.append(status_of(service.exchange("POST", "/v1/predict", ASKED)))

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        before = service.workers
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(service.workers) == 2 and before[0] not in service.workers)
        reached = len(found)
        until(lambda: len(found) > reached + 50)
        stop.set()
        for client in clients:
            client.join()
        # What the killed worker held is lost, and no more: at most one request of each client.
        assert set(found) <= {0, 200}
        assert found.count(0) <= len(clients)
        assert "SIGKILL" in " ".join(service.log)
        assert service.end() == 0


def test_the_end_waits_for_what_was_begun(folder):
    with Service(folder, "--set", "limits.linger=0") as service:
        with service.connect() as connection:
            body = b'{"texts": ["a lovely film"]}'
            connection.sendall(head("POST", "/v1/predict", len(body)) + body[:10])
            until(lambda: len(service.workers) == 1)
            service.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(service))
            connection.sendall(body[10:])
            assert status_of(everything(connection)) == 200
        assert service.end() == 0


def refuses(service):
    try:
        service.connect().close()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a=missing"], "must be the folder of a trained run"),
        (["same", "same"], "names of their own"),
        (["RUN", "--set", "limits.colour=1"], "unknown setting `limits.colour`"),
        (["RUN", "--set", "limits.deadline=0"], "`deadline` must be above 0"),
        (["RUN", "--workers", "0"], "`workers` must be at least 1"),
        (["RUN", "--port", "70000"], "`port` must be from 0 to 65535"),
        (["RUN", "--set", "limits.cells=15"], "`cells` must be at least 16"),
        (["RUN", "--set", "limits.beams=0"], "`beams` must be at least 1"),
        (["RUN", "--host", "203.0.113.7"], "`host` and `port` must be free"),
        (["RUN", "--host", "a..b"], "`host` and `port` must be free to listen on; got a..b:8000 (enc"),
    ],
)
def test_what_cannot_be_served_is_refused(folder, capsys, arguments, told):
    assert main(["serve", *(str(folder) if each == "RUN" else each for each in arguments)]) == 2
    assert told in capsys.readouterr().err
