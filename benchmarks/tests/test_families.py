"""docs/families.md says what comes out of the engine, for every family that can be built."""

import difflib
from pathlib import Path

import pytest
import transformers

from benchmarks.families.run import measure, page
from benchmarks.families.scored import TOLERANCE, Scored, shortened
from benchmarks.families.tiny import FAMILIES, one_of_each

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.usefixtures("one_thread")
def test_the_page_is_what_comes_out():
    text = PAGE.read_text("utf-8")
    if f"transformers {transformers.__version__} " not in text:
        pytest.skip("the page is of another version of transformers")
    results, unbuilt = measure(FAMILIES)
    wrong = [f"{r.family}: {r.error:.1e}" for r in results if not r.problem and not r.error <= TOLERANCE]
    assert not wrong, "neither exact nor refused"
    changed = "\n".join(difflib.unified_diff(text.splitlines(), page(results, unbuilt).splitlines(), n=0, lineterm=""))
    assert not changed, f"run python -m benchmarks.families.run --write docs/families.md:\n{changed}"


def test_what_is_said_of_a_model():
    assert Scored("a", "full", 1.0, "dense", error=1e-6).verdict == "yes"
    assert Scored("a", "full", 1.0, "dense", error=1e-2).verdict == "no"
    assert Scored("a", "full", 1.0, "dense", error=float("nan")).verdict == "no"
    assert Scored("a", "full", 1e-6, "dense").verdict.startswith("not told")
    assert Scored("a", "windows", 1.0, "dense", limit="its sliding window").verdict == "up to its sliding window"
    assert Scored("a", "full", 1.0, problem="it is odd").verdict == "it is odd"


@pytest.mark.parametrize(
    ("sentence", "short"),
    [
        ("model type 'a_b' cannot be scored by prefix sharing: it has conv layers", "it has conv layers"),
        ("AForCausalLM cannot be run as a judge: it is odd (no 'to')", "it is odd"),
        ("AAttention has keys of width 2 and values of 1", "has keys of width 2 and values of 1"),
    ],
)
def test_messages_are_shortened(sentence, short):
    assert shortened(sentence) == short


def test_a_layer_of_each_kind_stays():
    assert one_of_each(["a", "a", "b", "a", "c"]) == [0, 2, 4]
    assert one_of_each(["a", "a", "a"]) == [0, 1]
