"""Files are written whole or not at all, and what killed writers left is removed."""

import subprocess
import sys

import pytest

from headwise.contracts.files import replacing, write_whole


def test_contents_take_their_place(tmp_path):
    path = tmp_path / "config.json"
    for contents in (b"old", b"", b"new"):
        write_whole(path, contents)
        assert path.read_bytes() == contents
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]


def write_part_of(path):
    with replacing(path) as beside:
        beside.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        raise OSError("the disk is full")


def test_a_failure_leaves_the_old_contents(tmp_path):
    path = tmp_path / "a"
    write_whole(path, b"old")
    with pytest.raises(OSError, match="disk"):
        write_part_of(path)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "a", b"")


def test_what_a_killed_writer_left_is_removed_and_a_living_one_spared(tmp_path):
    writing = "from headwise.contracts.files import replacing; from pathlib import Path; import time\n"
    writing += "with replacing(Path('a')) as beside: beside.write_bytes(b'part'); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", writing]
    writers = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        writer.stdout.readline()
    others = [tmp_path / f".b.tmp-{'0' * 16}", tmp_path / ".a.tmp-notes"]
    for path in others:
        path.write_bytes(b"part")
    assert len(list(tmp_path.glob(".a.tmp-?*"))) == 3
    writers[0].kill()
    writers[0].communicate()
    write_whole(tmp_path / "a", b"whole")
    assert len(list(tmp_path.glob(".a.tmp-?*"))) == 2
    assert all(path.exists() for path in others)
    writers[1].kill()
    writers[1].communicate()
