"""What is loaded when: torch when a model is wanted, neither by `import gram_fast` nor by --help; triton never."""

import json
import os
import subprocess
import sys

import pytest
import torch

import gram_fast
from gram_fast.ops import backend_problem

HEAVY = ("torch", "transformers", "scipy", "sympy", "triton", "accelerate", "datasets", "pandas", "matplotlib")


def python(code, **environment):
    """What a Python of its own prints, read as JSON."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_package_and_a_judge_of_another_comparer_need_no_torch():
    imported, used = python(
        "import gram_fast, json, sys\n"
        "imported = sorted(sys.modules)\n"
        "from helpers.comparers import LengthComparer\n"
        "ranking = gram_fast.PairwiseJudge(LengthComparer()).rank('p', ['a', 'bbb', 'cc'])\n"
        "assert ranking.order == (1, 2, 0), ranking\n"
        "print(json.dumps([imported, sorted(sys.modules)]))"
    )
    assert not set(HEAVY) & set(imported)
    assert "torch" not in used


def test_help_of_every_command_needs_no_torch():
    loaded = python(
        "import contextlib, io, json, sys\n"
        "from gram_fast.cli import app\n"
        "from typer.main import get_command\n"
        "def show(command, *names):\n"
        "    shown = io.StringIO()\n"
        "    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):\n"
        "        get_command(app)(['gram-fast', *names, '--help'][1:], standalone_mode=False)\n"
        "    assert 'Usage' in shown.getvalue(), names\n"
        "    for name, below in getattr(command, 'commands', {}).items():\n"
        "        show(below, *names, name)\n"
        "show(get_command(app))\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("given", [None, "active"])
def test_threads_of_the_command_line_wait_passively_unless_told_otherwise(given):
    code = (
        "import json, os, sys\n"
        "from gram_fast import cli\n"
        "cli.app = lambda: print(json.dumps([os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules]))\n"
        "cli.main()"
    )
    found = python(code, **({} if given is None else {"OMP_WAIT_POLICY": given}))
    assert found == [given or "passive", False]  # OpenMP reads it when torch is imported


def test_a_judge_on_a_cpu_needs_no_triton_and_standard_error_that_is_no_terminal_sees_no_bars():
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"  # importing it raises ImportError, and nothing finds it
        "from gram_fast.cli import main\n"
        "main()"
    )
    row = {"prompt": "Sort from smallest to largest: 72, 15, 48, 31", "responses": ["72, 48, 31, 15", "15, 31, 48, 72"]}
    run = subprocess.run(
        [sys.executable, "-c", code, "rank", "-m", gram_fast.SMALL_JUDGE],
        input=json.dumps(row),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["order"] == [1, 0]
    assert run.stderr == "gram-fast: 1 rows written, 0 already there, 0 skipped\n"


def test_a_missing_triton_is_a_sentence_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    problem = backend_problem("tree_attention", "triton", torch.device("cuda"), torch.bfloat16)
    assert problem == "tree_attention backend 'triton' needs the package triton, for Linux: install gram_fast[cuda]"
