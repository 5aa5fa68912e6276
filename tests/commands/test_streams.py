"""Standard output that ends early or is full, in a process of its own: no traceback, and a code that says which."""

import json
import os
import subprocess
import sys

import pytest

from gram_fast import SMALL_JUDGE

ROWS = [{"id": k, "prompt": f"Name colour {k}.", "responses": ["Blue.", f"Red {k}."]} for k in range(300)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "in.jsonl"
    path.write_text("".join(json.dumps({**row, "preferred": "A"}) + "\n" for row in ROWS))
    return path


def command(*arguments):
    return [sys.executable, "-m", "gram_fast.cli", *map(str, arguments)]


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_device():
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    ("stdout", "code", "message"),
    [
        (closed_pipe, 141, ""),
        (full_device, 2, "gram-fast: cannot write standard output: No space left on device\n"),
    ],
)
def test_a_report_that_cannot_be_printed(source, stdout, code, message):
    descriptor = stdout()
    report = command("data", "check", source)
    run = subprocess.run(report, stdout=descriptor, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(descriptor)
    assert (run.returncode, run.stderr) == (code, message)


def test_a_reader_that_takes_one_row_ends_the_command_quietly(source):
    arguments = ("compare", "-m", SMALL_JUDGE, "-i", source)
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(120) == 141
    assert json.loads(first)["id"] == 0
    assert said == b""
