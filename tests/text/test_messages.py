"""Prompts and responses as the judge reads them: strings are themselves, and of messages nothing is lost in silence."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.text.group import Group
from gram_fast.text.messages import is_same, read_text, to_text


@pytest.mark.parametrize(
    "text", ["", " \n", "plain", "{input}", "\x00\x01\x07\x1b[0m\x7f\x85", "\ufffe\U0010ffff", "é"]
)
def test_string_is_itself(text):
    assert to_text(text, "prompt") == text


@given(st.text())
@settings(deadline=None)
def test_any_unicode_string_is_itself_and_the_content_of_its_message(text):
    assert to_text(text, "prompt") == text == to_text([{"role": "user", "content": text}], "prompt")


def test_several_messages_become_paragraphs():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?\n"},
        {"role": "assistant", "content": " 4"},
    ]
    assert to_text(messages, "prompt") == "System: Be brief.\n\nUser: 2 + 2?\n\n\nAssistant:  4"
    assert to_text(tuple(messages), "prompt") == to_text(messages, "prompt")


def test_content_parts_are_joined():
    message = {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}
    assert to_text([message], "prompt") == "a b"
    assert to_text([message, message], "prompt") == "User: a b\n\nUser: a b"


@pytest.mark.parametrize("value", [None, 3, 1.5, b"bytes", {"role": "user", "content": "x"}, {"a"}, object()])
def test_what_is_no_prompt_is_named_with_its_type(value):
    with pytest.raises(InputError, match=rf"^responses\[3\]: expected .* got {type(value).__name__}$"):
        to_text(value, "responses[3]")


@pytest.mark.parametrize("value", [[], ()])
def test_a_list_without_messages_is_named(value):
    with pytest.raises(InputError, match=r"^responses\[3\]: expected .* of chat messages, got an empty list$"):
        to_text(value, "responses[3]")


@pytest.mark.parametrize("value", [["text"], [None], [{"role": "user", "content": "x"}, "y"], [["user", "x"]]])
def test_list_of_anything_but_messages_is_refused(value):
    with pytest.raises(InputError, match=r"^prompt: message \d: expected a dict with 'role' and 'content', got "):
        to_text(value, "prompt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ": expected 'content' to be text, or tool calls beside it, found 'role'"),
        ([], ": expected 'content' to be text, or tool calls beside it, got an empty list"),
        (3, ": expected 'content' to be text, got int"),
        (b"x", ": expected 'content' to be text, got bytes"),
        ({"text": "x"}, ": expected 'content' to be text, got dict"),
        (["x"], ", part 0: expected a dict with 'type' and 'text', got str"),
        ([{"type": "text", "text": "x"}, {"type": "image_url"}], ", part 1 is of type 'image_url', expected text"),
        ([{"type": "image", "text": None}], ", part 0 is of type 'image', expected text"),
        ([{"type": "input_audio", "input_audio": {}}], ", part 0 is of type 'input_audio', expected text"),
        ([{"type": "text", "text": None}], ", part 0: expected 'text' to be text, got NoneType"),
        (
            [{"type": "tool_result", "content": [{"type": "image", "source": {}}]}],
            ", part 0, part 0 is of type 'image', expected text",
        ),
    ],
)
def test_content_that_is_not_text_is_refused_by_its_place(content, said):
    bad = {"role": "user", "content": content}
    for place, messages in enumerate(([bad], [{"role": "user", "content": "x"}, bad])):
        with pytest.raises(InputError, match=f"^{re.escape(f'prompt: message {place}{said}')}$"):
            to_text(messages, "prompt")


def test_a_message_of_several_has_a_role():
    assert to_text([{"content": "x"}], "prompt") == "x"
    with pytest.raises(InputError, match=r"^prompt: expected every chat message to have a 'role'$"):
        to_text([{"content": "x"}, {"role": "user", "content": "y"}], "prompt")


def test_message_without_content_is_refused_with_its_keys():
    with pytest.raises(
        InputError, match=r"^prompt: message 0: expected 'content' to be text, .* found 'from', 'value'$"
    ):
        to_text([{"from": "human", "value": "x"}], "prompt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ab\ud800", "U\\+D800 at character 2"),
        ("\udfffé", "U\\+DFFF at character 0"),
        ("😀\udc0a\ud800", "U\\+DC0A at character 1"),
    ],
)
def test_lone_surrogate_is_named_with_its_place(text, said):
    for value in (text, [{"role": "user", "content": text}]):
        with pytest.raises(InputError, match=rf"^responses\[7\]: expected text, found the lone surrogate {said}$"):
            to_text(value, "responses[7]")


CALL = {"id": "call_x7", "type": "function", "function": {"name": "weather", "arguments": '{"b": 1, "a": "é"}'}}
OPENAI = [
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_y8"}], "refusal": None},
    {"role": "tool", "tool_call_id": "call_y8", "content": "rain"},
    {"role": "tool", "tool_call_id": "call_x7", "content": "sun"},
    {"role": "assistant", "content": "Sun, then rain."},
]
WRITTEN = (
    'Assistant (tool call 1): weather({"a": "é", "b": 1})\n\n'
    'Assistant (tool call 2): weather({"a": "é", "b": 1})\n\n'
    "Tool (weather, call 2): rain\n\nTool (weather, call 1): sun\n\nAssistant: Sun, then rain."
)


def test_tool_calls_and_results_of_openai_are_written_out():
    assert to_text(OPENAI, "responses[0]") == WRITTEN
    absent = [{key: value for key, value in message.items() if value is not None} for message in OPENAI]
    assert to_text(absent, "responses[0]") == WRITTEN
    assert to_text([{**OPENAI[0], "content": ""}, *OPENAI[1:]], "responses[0]") == WRITTEN


def test_the_same_conversation_is_the_same_text_in_every_api():
    arguments = {"a": "é", "b": 1}
    flat = [
        {"name": "weather", "arguments": arguments, "id": "1"},
        {"name": "weather", "arguments": arguments, "id": "2"},
    ]
    transformers = [
        {"role": "assistant", "tool_calls": flat},
        {"role": "tool", "name": "weather", "tool_call_id": "2", "content": "rain"},
        {"role": "tool", "name": "weather", "tool_call_id": "1", "content": [{"type": "text", "text": "sun"}]},
        OPENAI[-1],
    ]
    assert to_text(transformers, "responses[0]") == WRITTEN
    uses = [{"type": "tool_use", "id": f"toolu_{k}", "name": "weather", "input": arguments} for k in (1, 2)]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "rain"},
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sun"}]},
    ]
    anthropic = [{"role": "assistant", "content": uses}, {"role": "user", "content": results}, OPENAI[-1]]
    assert to_text(anthropic, "responses[0]") == WRITTEN


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}],
            "Assistant (tool call 1): f({})",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": None}}]}],
            "Assistant (tool call 1): now({})",
        ),
        (
            [{"role": "assistant", "content": "Let me see.", "tool_calls": [{"name": "f", "arguments": {"x": None}}]}],
            'Assistant: Let me see.\n\nAssistant (tool call 1): f({"x": null})',
        ),
        ([{"role": "function", "name": "f", "content": "7"}], "Function (f): 7"),
        ([{"role": "tool", "tool_call_id": "call_9", "content": ""}], "Tool (call_9): "),
        ([{"role": "user", "name": "Ann", "content": "Hi."}], "User (Ann): Hi."),
        ([{"role": "assistant", "content": None, "refusal": "I cannot."}], "Assistant (refusal): I cannot."),
        ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}], "Assistant (refusal): No."),
        (
            [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "is_error": True}]}],
            "Tool (t, error): ",
        ),
        (
            [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
                        {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
                    ],
                }
            ],
            "Assistant: a\n\nAssistant (tool call 1): f({})\n\nAssistant: b",
        ),
    ],
)
def test_other_forms_of_messages(messages, text):
    assert read_text(messages, "prompt") == (text, ())


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ('{"b":1,\n"a":[1.50,"\\u00e9"]}', '{"a": [1.5, "é"], "b": 1}'),
        ("not JSON {", "not JSON {"),
        ("", ""),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        ('{"x": 0.30000000000000000001}', '{"x": 0.30000000000000000001}'),
        ('{"x": 1e999999999999999999999}', '{"x": 1e999999999999999999999}'),
        ('{"x": "\\ud83d"}', '{"x": "\\ud83d"}'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_arguments_have_one_form_and_lose_nothing(arguments, written):
    call = {"function": {"name": "f", "arguments": arguments}}
    assert to_text([{"role": "assistant", "tool_calls": [call]}], "p") == f"Assistant (tool call 1): f({written})"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
        ),
    )
)
@settings(deadline=None)
def test_arguments_as_text_and_parsed_are_the_same(value):
    def text(arguments):
        return to_text([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]}], "p")

    if not isinstance(value, str) and value is not None:
        assert text(value) == text(json.dumps(value)) == text(json.dumps(value, indent=1, ensure_ascii=False))


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ({"name": "f"}, "message 0: expected 'tool_calls' to be a list, got dict"),
        (["f"], "message 0, tool call 0: expected a function with 'name' and 'arguments', got str"),
        (
            [{"type": "custom", "custom": {"name": "f"}}],
            "message 0, tool call 0: expected a function with 'name' and 'arguments', found 'type', 'custom'",
        ),
        ([{"name": "f", "arguments": {"x": {1}}}], "message 0, tool call 0: expected 'arguments' to be JSON: "),
        ([{"name": "f", "id": 3}], "message 0, tool call 0: expected 'id' to be text, got int"),
    ],
)
def test_a_tool_call_that_cannot_be_read_is_named(calls, said):
    with pytest.raises(InputError, match=re.escape(f"responses[1]: {said}")):
        to_text([{"role": "assistant", "content": "x", "tool_calls": calls}], "responses[1]")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_left_out_with_a_word_and_read_where_it_is_asked_for(key):
    messages = [{"role": "assistant", "content": "4", key: "2 and 2 ..."}]
    assert read_text(messages, "p") == ("4", (key,))
    assert read_text(messages, "p", include_reasoning=True) == (
        "Assistant (reasoning): 2 and 2 ...\n\nAssistant: 4",
        (),
    )
    assert read_text([{**messages[0], key: ""}], "p") == read_text([{**messages[0], key: None}], "p") == ("4", ())
    with pytest.warns(UserWarning, match=f"^'{key}' of chat messages is left out .*include_reasoning"):
        assert to_text(messages, "p") == "4"


def test_parts_of_thinking_are_reasoning():
    parts = [{"type": "thinking", "thinking": "so", "signature": "s"}, {"type": "text", "text": "4"}]
    messages = [{"role": "assistant", "content": [*parts, {"type": "redacted_thinking", "data": "e"}]}]
    assert read_text(messages, "p") == ("4", ("thinking", "redacted_thinking"))
    assert read_text(messages, "p", True)[0] == "Assistant (reasoning): so\n\nAssistant: 4"


def test_an_answer_that_broke_off_in_its_reasoning_is_empty():
    assert read_text([{"role": "assistant", "content": None, "reasoning": "so"}], "p") == ("", ("reasoning",))


def test_unknown_keys_with_words_are_said_and_those_without_are_not():
    message = {"role": "user", "content": "x", "id": "m1", "weight": 1, "train": True, "audio": None, "annotations": []}
    assert read_text([message], "p") == ("x", ())
    assert read_text([{**message, "country": "Norway", "audio": {"transcript": "y"}}], "p") == (
        "x",
        ("audio", "country"),
    )


def test_a_group_says_what_is_left_out_of_its_texts():
    plain, thought = ({"role": "assistant", "content": "4", "reasoning_content": text} for text in ("", "so"))
    group = Group.of("p", [[plain], [thought]])
    assert (group.texts, group.text_of.tolist()) == (["4"], [0, 0])
    assert group.flags(lambda text: ()) == {"responses[1]": ("reasoning_content left out",)}
    told_apart = Group.of("p", [[plain], [thought]], include_reasoning=True)
    assert told_apart.text_of.tolist() == [0, 1]
    assert told_apart.flags(lambda text: ()) == {}


def test_responses_that_differ_in_tool_calls_alone_are_different_texts():
    other = json.loads(json.dumps(OPENAI).replace("rain", "snow"))
    call = json.loads(json.dumps(OPENAI).replace("weather", "calendar"))
    swapped = [OPENAI[0], {**OPENAI[1], "tool_call_id": "call_x7"}, {**OPENAI[2], "tool_call_id": "call_y8"}, OPENAI[3]]
    assert Group.of("p", [OPENAI, other, call, swapped]).text_of.tolist() == [0, 1, 2, 3]


def test_values_are_the_same_where_they_are_read_as_one_text():
    thought = {"role": "assistant", "content": "4", "reasoning": "2 + 2"}
    assert is_same([{"role": "user", "content": "4"}], "4")
    assert not is_same([thought], [{**thought, "reasoning": "1 + 3"}])
    assert is_same(None, None)
    assert not is_same(None, [])
    with pytest.raises(InputError) as caught:
        read_text(None, "value")
    assert not is_same(None, str(caught.value)), "a text that says what another lacks"
