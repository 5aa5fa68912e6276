"""Pairs read from every format: the worked examples, what is taken apart, what is refused and how it is named."""

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.records import CHAT, END_A, END_B, EXAMPLES, GRAM, ROW, START_A, START_B, read, texts, write
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.training.data.formats import Layout, parse_row
from gram_fast.training.data.records import PairRecord, read_pair_records

ROOT = Path(__file__).parents[3]
PRIME = ("Name a prime.", "7", "9", "A")
DOUBLED = ("User: 2 + 2?\n\nAssistant: 4\n\nUser: And doubled?", "8", "6", "A")
FRENCH = ("System: Answer in French.\n\nUser: Hello!", "Bonjour !", "Hello.", "A")
SECOND_TURN = ("User: Hi!\n\nAssistant: Hi.\n\nUser: 2 + 2?", "4", "5", "A")
EXPECTED = {
    "preference.jsonl": [
        PRIME,
        ("System: Be brief.\n\nUser: 2 + 2?", "4", "The sum of two and two is four.", "A"),
        ("Hello!", "Hello! How can I help?", "", "A"),
    ],
    "preference_implicit.jsonl": [PRIME, SECOND_TURN, SECOND_TURN],
    "unlabeled.jsonl": [("Name a prime.", "7", "9", None), (*FRENCH[:3], None), ("2 + 2?", "4", "5", None)],
    "gram_stage1.json": [
        ("Can dogs get covid?", "Yes, they can.", "Some have.", None),
        ("Translate into French.\n\n\nGood morning.", "Bonjour.", "Bon matin.", None),
        ("Name a prime.", "7", "9", None),
    ],
    "gram_stage2.jsonl": [
        ("Can dogs get covid?", "Yes, they can.", "No idea.", "A"),
        ("Name a prime.", "9", "7", "B"),
        ("2 + 2?\nBe brief.", "4", "It is 4,\n\nas we know.", "A"),
    ],
    "alpaca_ranking.json": [
        ("Translate into French.\nGood morning.", "Bonjour.", "Bon matin.", "A"),
        ("System: Be brief.\n\nUser: Name a prime.", "7", "The number 9.", "A"),
        DOUBLED,
    ],
    "sharegpt_ranking.json": [PRIME, DOUBLED, FRENCH],
    "rationale.jsonl": [
        ("Name a prime.", "9", "7", "B"),
        FRENCH,
        ("2 + 2?", "5", "4", "B"),
    ],
    "gram_rr.jsonl": [
        ("Can dogs get covid?", "Yes, they can.", "No idea.", "A"),
        ("Name a prime.", "9", "7", "B"),
        ("2 + 2?\nBe brief.", "4", "It is 4,\n\nas we know.", "A"),
    ],
    "genrm.jsonl": [
        ("Can dogs get covid?", "Yes, they can.", "No idea.", "A"),
        ("Name a prime.", "9", "7", "B"),
        ("<turn>user\n2 + 2?\n<turn>assistant\n4\n<turn>user\nAnd doubled?\n", "8", "6", "A"),
    ],
    "helpsteer3.jsonl": [
        ("Name a prime.", "9", "7", "B"),
        DOUBLED,
        ("Hello!", "Hello.", "Bonjour !", "A"),
    ],
    "stage1": "gram_stage1.json",
    "primes": [PRIME, ("System: Be brief.\n\nUser: 2 + 2?", "4", "The sum is four.", "A"), FRENCH],
    "chats": [PRIME, DOUBLED, FRENCH],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_worked_examples_read_as_the_page_says(name):
    expected = EXPECTED.get(EXPECTED[name]) if isinstance(EXPECTED[name], str) else EXPECTED[name]
    source = EXAMPLES / name if "." in name else name
    assert texts(read(source, dataset_info=str(EXAMPLES / "dataset_info.json"))) == expected


def test_the_worked_examples_have_the_rationales_that_the_page_says():
    found = {name: [r.rationale for r in read(EXAMPLES / name)] for name in ("rationale.jsonl", "gram_rr.jsonl")}
    [first, *others] = found.pop("gram_rr.jsonl")
    assert first.startswith("Feedback:\nResponse A answers")
    assert others == ["7 is a prime.", None]
    assert found == {
        "rationale.jsonl": ["9 is three times three, 7 is a prime.", "Only Response A is in French.", None]
    }
    with pytest.warns(UserWarning, match="expected 'feedback2', 'reasoning', which are missing in some rows"):
        [feedback, *others] = [r.rationale for r in read(EXAMPLES / "helpsteer3.jsonl")]
    assert feedback == (
        "Feedback:\nResponse A: 9 is no prime.\nResponse B: 7 is a prime.\n\n"
        "Comparision:\nResponse B is right, Response A is not.\n\nConclusion:\nResponse B is better."
    )
    assert others == [None, None]


def test_every_example_stands_in_the_page_and_nothing_else():
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    shown = re.findall(r"^```json\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert sorted(shown) == sorted(path.read_text("utf-8") for path in EXAMPLES.iterdir())


def test_a_row_of_an_array_is_named_by_the_line_on_which_it_begins(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_bytes(
        b'\xef\xbb\xbf\n[ {"prompt": "p",\n"chosen": "a", "rejected": "b"\n}\n,\n\n' + json.dumps(ROW).encode() + b"]\n"
    )
    assert [record.where for record in read(path)] == [f"{path} line 2", f"{path} line 7"]


TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
PROMPT = TEXT.filter(str.strip)
MESSAGES = st.lists(st.builds(lambda text: {"role": "user", "content": text}, PROMPT), min_size=1, max_size=3)
TABLES = st.one_of(
    st.lists(st.fixed_dictionaries({"prompt": prompt, "responses": st.lists(TEXT, min_size=2, max_size=2)}), min_size=1)
    for prompt in (PROMPT, MESSAGES)
)


@given(rows=TABLES, indent=st.sampled_from([None, 0, 3]))
@settings(deadline=None, max_examples=40)
def test_lines_array_and_parquet_of_the_same_rows_are_the_same_pairs(tmp_path_factory, rows, indent):
    folder = tmp_path_factory.getbasetemp()
    lines = write(folder / "same.jsonl", *rows)
    array = folder / "same.json"
    array.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), "utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "same.parquet")
    expected = texts(read(lines))
    assert len(expected) == len(rows)
    assert texts(read(array)) == expected
    assert texts(read(folder / "same.parquet")) == expected


def test_parquet_is_read_in_order_and_its_rows_counted_across_batches(tmp_path):
    path = tmp_path / "pairs.parquet"
    rows = [{"prompt": f"p{k}", "chosen": "a", "rejected": "b", "system": None} for k in range(600)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    records = read(path)
    assert [r.prompt for r in records] == [row["prompt"] for row in rows]
    assert records[-1].where == f"{path} row 600"


@pytest.mark.parametrize(
    ("instruction", "input", "prompt"), [("i", "q", "i\nq"), ("i\n\n", "q", "i\n\n\nq"), ("", "q", "q"), ("i", "", "i")]
)
def test_an_input_is_joined_as_in_llama_factory(instruction, input, prompt):
    """`"\\n".join` of those that are not empty: AlpacaDatasetConverter of hiyouga/LLaMA-Factory, data/converter.py."""
    row = {"instruction": instruction, "input": input, "chosen": "a", "rejected": "b"}
    assert parse_row(row, Layout("preference"), GRAM) == (prompt, "a", "b", "A", None)
    if not instruction:
        del row["instruction"]
        assert parse_row(row, Layout("preference"), GRAM) == (prompt, "a", "b", "A", None)


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # A prompt in messages that the conversations repeat: what they share behind it belongs to the responses.
        (
            {
                "prompt": [user("q")],
                "chosen": [user("q"), says("x"), says("a")],
                "rejected": [user("q"), says("x"), says("b")],
            },
            ("q", "Assistant: x\n\nAssistant: a", "Assistant: x\n\nAssistant: b"),
        ),
        # As text: all that they share, as TRL has it.
        (
            {"prompt": "q", "chosen": [user("q"), says("x"), says("a")], "rejected": [user("q"), says("x"), says("b")]},
            ("User: q\n\nAssistant: x", "a", "b"),
        ),
        # Messages that go on after the prompt are the response.
        (
            {"prompt": "q", "chosen": [says("x"), says("a")], "rejected": [says("x"), says("b")]},
            ("q", "Assistant: x\n\nAssistant: a", "Assistant: x\n\nAssistant: b"),
        ),
        # Each keeps a message to answer with.
        (
            {"chosen": [user("q"), says("a"), user("more")], "rejected": [user("q"), says("a")]},
            ("q", "Assistant: a\n\nUser: more", "a"),
        ),
        ({"prompt": "q", "system": "", "chosen": "a", "rejected": "b"}, ("q", "a", "b")),
        (
            {**ROW, "prompt": [{"role": "system", "content": "s"}, user("q")], "system": "t"},
            ("System: s\n\nUser: q", "a", "b"),
        ),
        ({"prompt": None, "instruction": "q", "chosen": "a", "rejected": "b"}, ("q", "a", "b")),
        ({"prompt": " q", "chosen": " ", "rejected": ""}, (" q", " ", "")),
    ],
)
def test_preferences(row, expected):
    assert parse_row(row, None, GRAM) == (*expected, "A", None)


DIALOGUE = "\n\nHuman: q\n\nAssistant: {}"
FILLED = {"instruction": GRAM.fill("p", "a", "b"), "output": "A"}
STAGE_1 = {"instruction": "[User Question]\np\n\n", "output": f"{START_A}\na\n{END_A}\n\n{START_B}\nb\n{END_B}"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "expected a JSON object, got list"),
        ({}, "expected the fields of a pair (chosen and rejected; "),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "found 'prompt', 'chosen'"),
        ({**ROW, "prompt": " \n"}, "prompt: expected text, found none but white space"),
        ({**ROW, "prompt": 3}, "prompt: expected a string or a list of chat messages, got int"),
        ({**ROW, "chosen": "b"}, "responses: expected two that differ, as one is preferred, found two equal ones"),
        ({**ROW, "chosen": ["a"]}, "chosen: message 0: expected a dict with 'role' and 'content', got str"),
        ({**ROW, "rejected": "b\ud800"}, "rejected: expected text, found the lone surrogate U+D800 at character 1"),
        ({**ROW, "system": ["s"]}, "system: expected text, got list"),
        ({"chosen": "a", "rejected": "b"}, "prompt: expected this field, or chosen to be a conv"),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "prompt: expected this field, or chosen to be a conv"),
        ({"chosen": DIALOGUE.format("a"), "rejected": "b"}, "or rejected to be a conversation"),
        ({"chosen": "Hi" + DIALOGUE.format("a"), "rejected": DIALOGUE.format("b")}, "or chosen to be a conversation"),
        (
            {"chosen": DIALOGUE.format("a"), "rejected": DIALOGUE.format("b\n\nHuman: r\n\nAssistant: c")},
            "chosen, rejected: expected dialogues that differ in the last answer alone",
        ),
        (
            {"chosen": [user("q"), says("a")], "rejected": [user("r"), says("b")]},
            "chosen, rejected: expected conversations that begin with the same messages",
        ),
        (
            {"chosen": [user("q"), says("a")], "rejected": "b"},
            "expected conversations that begin with the same messages",
        ),
        (
            {"prompt": "p", "chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")]},
            "prompt: expected one of the messages with which chosen begins",
        ),
        (
            {"prompt": [user("p")], "chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")]},
            "prompt: expected the messages with which chosen begins",
        ),
        ({"prompt": "p", "responses": ["a", "b", "c"]}, "responses: expected a list of 2, got 3"),
        ({"prompt": "p", "responses": "ab"}, "responses: expected a list of 2, got str"),
        (
            {"prompt": "p", "responses": ["a", None]},
            "responses[1]: expected a string or a list of chat messages, got NoneType",
        ),
        ({"instruction": "i", "chosen": "a", "rejected": "b", "history": ["x"]}, "history: expected a list of turns"),
        (
            {"instruction": "i", "output": "an answer"},
            "output: expected 'A', 'B', or two answers between lines such as \"[The Start",
        ),
        ({**STAGE_1, "instruction": "p"}, "instruction: expected the line '[User Question]' and the prompt under it"),
        (
            {**STAGE_1, "output": STAGE_1["output"].replace(END_A, "")},
            f'output: expected "{END_A}" once, found it 0 times',
        ),
        ({**STAGE_1, "output": STAGE_1["output"] + START_B}, f'output: expected "{START_B}" once, found it 2 times'),
        ({**STAGE_1, "output": "Here: " + STAGE_1["output"]}, "output: expected the marker lines of both answers in"),
        ({**FILLED, "output": 1}, "output: expected text, got int"),
        (
            {**FILLED, "instruction": "p"},
            "instruction: expected the judge's template, which begins with 'Please act as",
        ),
        (
            {**FILLED, "instruction": FILLED["instruction"] + "?"},
            'which ends with "[The End of Assistant B\'s Answer]"',
        ),
        (
            {**FILLED, "instruction": FILLED["instruction"].replace(START_B, "")},
            f'found no "{END_A}" where it should be',
        ),
        (
            {**FILLED, "instruction": GRAM.fill("p", f"a\n{END_A}\n\n{START_B}\nc", "b")},
            f'found "{END_A}" more than once, so that',
        ),
        (
            {**FILLED, "instruction": GRAM.fill(f"p\n\n{START_A}\nc", "a", "b")},
            f'found "{START_A}" more than once, so that',
        ),
        ({**CHAT, "conversations": []}, "conversations: expected a list of messages, got list"),
        (
            {**CHAT, "conversations": [{"from": "user", "value": "p"}]},
            "to be one of human, gpt, observation, function_call, system, got 'user'",
        ),
        (
            {**CHAT, "conversations": [{"role": "user", "content": "p"}]},
            "conversations[0]: expected a message with 'from' and 'value'",
        ),
        (
            {**CHAT, "conversations": [{"from": ["human"], "value": "p"}]},
            "conversations[0]: expected 'from' to be one of",
        ),
        (
            {**CHAT, "conversations": [CHAT["chosen"]]},
            "conversations: expected a last message to be answered, found the assistant's own",
        ),
        ({**CHAT, "rejected": "b"}, "rejected: expected a message with 'from' and 'value'"),
        (
            {**CHAT, "rejected": {"from": "human", "value": "b"}},
            "rejected: expected the assistant's message, found the user's",
        ),
    ],
)
def test_a_bad_row_is_named_and_can_be_passed_over(tmp_path, row, message):
    path = write(tmp_path / "pairs.jsonl", ROW, row, ROW)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} line 2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    errors = []
    assert [r.where for r in read(path, skip_bad=errors.append)] == [f"{path} line 1", f"{path} line 3"]
    assert list(map(str, errors)) == [str(caught.value)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "p"', "expected JSON, Expecting ',' delimiter at column 15"),
        (b'{"prompt": "p', "expected JSON, Unterminated string starting at column 12"),
        (b'{"prompt": "caf\xe9"}', "expected UTF-8, found the byte 0xe9"),
        (b"[" * 100_000, "expected JSON, "),
        (b"1" * 5000, "expected JSON, "),
    ],
)
def test_a_line_that_is_not_json_is_a_bad_row(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\n" + line + b"\n" + json.dumps(ROW).encode())
    with pytest.raises(InputError, match=re.escape(f"{path} line 3: {message}")):
        read(path)
    assert [r.where for r in read(path, skip_bad=lambda error: None)] == [f"{path} line 1", f"{path} line 4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[\n{} {}]", "line 2: expected ',' or ']' after an element"),
        (b"[\n{}\n", "line 3: expected ',' or ']' after an element"),
        (b"[{},\n]", "line 2: expected JSON, Expecting value at column 1"),
        (b'[{},\n{"x": "\n"}]', "line 2: expected JSON, Invalid control character at column 8"),
        (b"[{}]\n{}", "line 1: expected nothing after the end of the array"),
        (b'[{},\n{"x": "\xff"}]', "line 2: expected UTF-8, found the byte 0xff"),
        (b"[{},\n" + b"[" * 100_000, "line 2: expected JSON, "),
        (b"PAR1 or so", "as parquet, after 0 rows: "),
    ],
)
def test_a_broken_file_is_an_error_whatever_may_be_passed_over(tmp_path, text, message):
    path = tmp_path / "pairs.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(path, skip_bad=lambda error: None)
    assert str(path) in str(caught.value)


def test_tool_calls_are_kept_and_reasoning_is_read_where_it_is_asked_for(tmp_path):
    def answer(city):
        calls = [{"function": {"name": "weather", "arguments": json.dumps({"city": city})}}]
        return [{"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "so"}]

    row = {"prompt": "p", "chosen": answer("Oslo"), "rejected": answer("Bergen")}
    registered = {
        "messages": [{"role": "user", "content": "p"}],
        "chosen": row["chosen"][0],
        "rejected": row["rejected"][0],
    }
    columns = {name: name for name in registered}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "own.jsonl", "formatting": "sharegpt", "ranking": True, "columns": columns, "tags": tags}
    write(tmp_path / "own.jsonl", registered)
    own = {"source": "own", "dataset_info": str(write(tmp_path / "info.json", {"own": entry}))}
    for how in ({"source": write(tmp_path / "pairs.jsonl", row)}, own):
        with pytest.warns(UserWarning, match="'reasoning_content' of chat messages is left out"):
            (said,) = texts(read(**how))
        assert said == ("p", *(f'Assistant (tool call 1): weather({{"city": "{c}"}})' for c in ("Oslo", "Bergen")), "A")
        ((_, a, _, _),) = texts(read(**how, include_reasoning=True))
        assert a.startswith("Assistant (reasoning): so\n\nAssistant (tool call 1)")


def test_an_empty_file_and_an_empty_array_have_no_pairs(tmp_path):
    assert read(write(tmp_path / "a", "", " ")) == read(write(tmp_path / "b", "[ ]")) == []


def test_reading_is_a_stream(tmp_path):
    path = write(tmp_path / "pairs.jsonl", ROW, "broken")
    assert next(read_pair_records(str(path), template=GRAM)) == PairRecord("p", "a", "b", "A", f"{path} line 1")
