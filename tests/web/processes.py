"""Start `headwise serve` as people do, and talk to it without a library that would mend what is broken."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

WAIT = 60
"""Seconds after which something that should happen has not."""


class Service:
    """A running service; leaving its context ends it."""

    def __init__(self, folder, *more):
        command = [sys.executable, "-m", "headwise", "serve", str(folder), "--port", "0", "--device", "cpu", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.log = []
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._told.wait(WAIT), self.log
        self.port = int(re.search(r":(\d+)$", self.log[0])[1])
        until(lambda: status_of(self.exchange("GET", "/ready")) == 200)

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            self._told.set()
        self._told.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Tell it to stop, and give its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        self.process.stderr.close()
        return code

    @property
    def workers(self):
        """The processes that answer."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(each) for each in children.split()]

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)

    def exchange(self, method, path, body=None):
        """Send a whole request, and give all that comes back; nothing where the connection broke."""
        content = b"" if body is None else json.dumps(body).encode()
        with self.connect() as connection:
            try:
                connection.sendall(head(method, path, len(content)) + content)
                return everything(connection)
            except ConnectionError:
                return b""


def head(method, path, length):
    lines = f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json"
    return "\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode()


def everything(connection):
    """Read until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def status_of(answer):
    """Give the status of an answer; 0 where there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0


def until(condition):
    """Wait until something holds."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not happen")
