from hashlib import sha256
from importlib import resources

import pytest
from helpers.small_tokenizers import ALL, CHATML, MAKE, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.text.prompts import SLOTS, VERIFIER_SLOTS, ChatText, PairTemplate, preset_names, render_chat

AWKWARD = (" \n{input} {{ x }}\n ", "\t<b>{response_a}</b> '\" \\n", "\ue000 1\ue001 {response_b}\r\n")
CUSTOM = "Question: {input}\n\nFirst: {response_a}\n\nSecond: {response_b}\n\nBetter:"


def test_presets_are_those_that_ship():
    assert preset_names() == [
        "genrm",
        "gram",
        "gram-demo",
        "gram-llama3",
        "gram-qwen3",
        "gram-r2",
        "short",
        "skywork-critic",
        "verifier",
        "verifier-cot",
    ]


@pytest.mark.parametrize("name", preset_names())
def test_preset_is_the_bytes_of_its_file(name):
    file = resources.files("gram_fast") / "presets" / f"{name}.txt"
    text = PairTemplate.load(name).text.encode()
    settings = file.read_bytes().removesuffix(text)
    assert settings == b"" or (settings.startswith(b"+++\n") and settings.endswith(b"\n+++\n"))
    assert settings + text == file.read_bytes()
    assert (settings == b"") == (name in ("gram", "gram-demo", "short"))


@pytest.mark.parametrize("name", preset_names())
def test_preset_has_its_slots_in_order(name):
    template = PairTemplate.load(name)
    is_verifier = name in ("verifier", "verifier-cot")
    assert template.slots == (VERIFIER_SLOTS if is_verifier else SLOTS)
    assert template.is_verifier == is_verifier


def test_gram_r2_is_the_published_prompt():
    text = PairTemplate.load("gram-r2").text
    for ours, theirs in (("input", "user_input"), ("response_a", "response_1"), ("response_b", "response_2")):
        text = text.replace(f"{{{ours}}}", f"{{{theirs}}}")
    assert sha256(text.encode()).hexdigest() == "3bbed89b057f078e352e480b964a22bd19357bcadf294edbaaf9d9f6bf5c2820"


@pytest.mark.parametrize("name", ["gram-r2", "verifier-cot"])
def test_prompt_of_a_judge_that_reasons_ends_before_its_answer_with_thinking_on(name):
    template = PairTemplate.load(name)
    values = AWKWARD[: len(template.slots)]
    text = ChatText.render(template, tokenizer("qwen")).fill(*values)
    assert text == whole("qwen", template, values, enable_thinking=True)
    assert text != whole("qwen", template, values, enable_thinking=False)


def test_gram_ends_as_its_checkpoints_were_trained():
    assert PairTemplate.load("gram").literals[-1].endswith("\n\n#Preferred: ")


def test_fill_puts_texts_in_their_slots_and_reads_nothing_in_them():
    template = PairTemplate.parse("b={response_b} i={input} a={response_a}.")
    assert template.slots == ("response_b", "input", "response_a")
    assert template.fill("{response_a}", "{input}", "{{x}}") == "b={{x}} i={response_a} a={input}."


def test_other_braces_are_text():
    text = "{ {x} {{input}} {response_a}{response_b} {% if %} {input!r} {0}"
    assert PairTemplate.parse(text).fill("{input}", "{response_a}", "{response_b}") == text


@pytest.mark.parametrize("slot", SLOTS)
def test_missing_slot_is_named(slot):
    with pytest.raises(InputError, match=rf"^mine: expected \{{{slot}\}} exactly once, found it 0 times$"):
        PairTemplate.parse(CUSTOM.replace(f"{{{slot}}}", ""), "mine")


@pytest.mark.parametrize("slot", SLOTS)
def test_repeated_slot_is_named(slot):
    with pytest.raises(InputError, match=rf"^template: expected \{{{slot}\}} exactly once, found it 2 times$"):
        PairTemplate.parse(f"{CUSTOM}{{{slot}}}")


@pytest.mark.parametrize("name", ["grams", "", ".", "no/such/file.txt", "a\0b", "GRAM"])
def test_unknown_preset_names_the_known_ones(name):
    with pytest.raises(InputError, match="presets are genrm, gram, gram-demo, gram-llama3, ") as error:
        PairTemplate.load(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("text", [CUSTOM, CUSTOM.replace("\n", "\r\n"), "é中\u00a0" + CUSTOM + "\n\n"])
def test_template_from_a_file_keeps_its_bytes(tmp_path, text):
    path = tmp_path / "mine.txt"
    path.write_bytes(text.encode())
    assert PairTemplate.load(str(path)) == PairTemplate.parse(text)


def test_template_file_that_lacks_a_slot_is_named(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("{input}")
    with pytest.raises(InputError, match=r"mine\.txt: expected \{response_a\}"):
        PairTemplate.load(str(path))


def test_template_file_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"caf\xe9 " + CUSTOM.encode())
    with pytest.raises(InputError, match=r"mine\.txt: expected UTF-8, found byte 3 that is not"):
        PairTemplate.load(str(path))


@pytest.mark.parametrize("name", ["gram", "gram-demo"])
def test_markers_are_the_lines_around_the_slots(name):
    markers = [
        "[User Question]",
        "[The Start of Assistant A's Answer]",
        "[The End of Assistant A's Answer]",
        "[The Start of Assistant B's Answer]",
        "[The End of Assistant B's Answer]",
    ]
    assert list(PairTemplate.load(name).markers) == markers + ["#Preferred:"] * (name == "gram")


def test_markers_are_distinct_and_not_too_short():
    template = PairTemplate.parse("Judge.\nA:\n{input}\n----\nA:{response_a}\n----\nB:\n\n{response_b}\n  Verdict \n")
    assert template.markers == ("----", "Verdict")


def whole(name_or_tokenizer, template, values, **options):
    tok = tokenizer(name_or_tokenizer) if isinstance(name_or_tokenizer, str) else name_or_tokenizer
    message = [{"role": "user", "content": template.fill(*values)}]
    return tok.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **options)


@pytest.mark.parametrize("preset", [name for name in preset_names() if not PairTemplate.load(name).frame])
@pytest.mark.parametrize("name", ALL)
def test_chat_text_is_that_of_the_filled_message(name, preset):
    template = PairTemplate.load(preset)
    text = ChatText.render(template, tokenizer(name))
    assert text.slots == template.slots
    for row in (AWKWARD, ("", "", ""), ("x", "x", "x"), AWKWARD[::-1]):
        values = row[: len(template.slots)]
        chat = whole(name, template, values, enable_thinking=template.reasons)
        assert text.fill(*values) == chat + ("" if template.reasons else template.answer_prefix)


@given(values=st.tuples(st.text(), st.text(), st.text()))
@settings(deadline=None, max_examples=60)
def test_chat_text_is_that_of_the_filled_message_for_any_text(values):
    template = PairTemplate.load("gram")
    text = ChatText.render(template, tokenizer("llama3"))
    assert text.fill(*values) == whole("llama3", template, values)


def test_chat_text_with_slots_in_other_order():
    template = PairTemplate.parse("B: {response_b}\nA: {response_a}\nQ: {input}\nBest:")
    text = ChatText.render(template, tokenizer("qwen"))
    assert text.slots == ("response_b", "response_a", "input")
    assert text.fill(*AWKWARD) == whole("qwen", template, AWKWARD, enable_thinking=False)


def test_thinking_is_off_where_there_is_the_switch():
    template = PairTemplate.load("gram")
    text = ChatText.render(template, tokenizer("qwen")).fill("q", "a", "b")
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    # Without the keyword, this chat template lets the model think: the switch is what made the difference.
    assert whole("qwen", template, ("q", "a", "b")).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("name", ["llama3", "llama2"])
@pytest.mark.parametrize(
    "text",
    [
        "{input}\nA: {response_a}\nB: {response_b}\nBest:",
        "Q: {input}\nA: {response_a}\nB: {response_b}",
        "\n{input}\nA: {response_a}\nB: {response_b}\n\n",
    ],
)
def test_trimmed_slot_at_the_edge_is_refused(name, text):
    with pytest.raises(UnsupportedModelError, match="put text of the template before the first slot and after the"):
        ChatText.render(PairTemplate.parse(text), tokenizer(name))


def test_slot_at_the_edge_is_fine_where_nothing_is_trimmed():
    template = PairTemplate.parse("{input}\nA: {response_a}\nB: {response_b}")
    text = ChatText.render(template, tokenizer("qwen"))
    assert text.fill(*AWKWARD) == whole("qwen", template, AWKWARD, enable_thinking=False)


@pytest.mark.parametrize("change", ["| upper", "| escape", "| replace('\\n', ' ')", "| replace('{{', '')", "[:900]"])
def test_chat_template_that_alters_the_slots_is_refused(change):
    tok = MAKE["qwen"]()
    tok.chat_template = CHATML.replace("message.content", f"message.content {change}")
    with pytest.raises(UnsupportedModelError, match="alters the text of the slots"):
        ChatText.render(PairTemplate.load("gram"), tok)


def test_chat_template_that_repeats_the_message_is_refused():
    tok = MAKE["qwen"]()
    tok.chat_template = CHATML.replace("{{ message.content }}", "{{ message.content }}{{ message.content }}")
    with pytest.raises(UnsupportedModelError):
        ChatText.render(PairTemplate.load("gram"), tok)


@pytest.mark.parametrize("chat_template", [None, ""])
def test_tokenizer_without_a_chat_template_is_refused(chat_template):
    tok = MAKE["gpt2"]()
    tok.chat_template = chat_template
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        ChatText.render(PairTemplate.load("gram"), tok)


@pytest.mark.parametrize(
    ("chat_template", "said"),
    [
        ("{{ raise_exception('only tools\\nwork here') }}", "only tools work here$"),
        ("{{ messages[1].content }}", "messages|list"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_chat_template_that_raises_is_quoted_in_one_line(chat_template, said):
    tok = MAKE["gpt2"]()
    tok.chat_template = chat_template
    with pytest.raises(UnsupportedModelError, match=f"^the checkpoint's chat template failed: .*({said})") as error:
        ChatText.render(PairTemplate.load("gram"), tok)
    assert "\n" not in str(error.value)


def test_render_chat_without_generation_prompt():
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    expected = tokenizer("llama3").apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    assert render_chat(tokenizer("llama3"), turns, add_generation_prompt=False) == expected
    assert expected.endswith("y<|eot_id|>")


def test_template_text_in_place_of_a_name_is_an_error_that_is_short():
    with pytest.raises(InputError, match="no preset or template file") as caught:
        PairTemplate.load("Which is better? " * 400)
    assert str(caught.value).count("Which is better?") < 6


def test_byte_order_mark_is_not_part_of_a_template(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"\xef\xbb\xbf{input} {response_a} {response_b}")
    assert PairTemplate.load(str(path)).literals[0] == ""
