"""Prompts and responses are taken out of the text of any chat template, or refused."""

import pytest
from helpers.small_tokenizers import ALL, tokenizer, wrap
from hypothesis import given
from hypothesis import strategies as st

from gram_fast import InputError
from gram_fast.integrations.turns import Turns

USER = {"role": "user", "content": "What is 2 + 2?\nSay it."}
ASSISTANT = {"role": "assistant", "content": "Four."}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS = [[USER], [SYSTEM, USER], [USER, ASSISTANT, USER], [SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER]]
BRIEF = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def rendered(name, chat, **variables):
    return tokenizer(name).apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **variables)


def generated(name, prompt, response):
    """Prompt and response as a host decodes them, with the token that ends a turn."""
    tok = tokenizer(name)
    ids = [i for text in (prompt, response) for i in tok(text, add_special_tokens=False)["input_ids"]]
    return tok.decode([*ids, tok.eos_token_id], skip_special_tokens=False)


@pytest.mark.parametrize("chat", CHATS, ids=len)
@pytest.mark.parametrize("name", ALL)
def test_messages_and_response_come_back(name, chat):
    prompt = rendered(name, chat)
    row = Turns(tokenizer(name)).row(prompt, generated(name, prompt, "It's 4.\n"), has_prompt=True)
    assert row.prompt == chat
    assert row.response.lstrip(" ") == "It's 4.\n"  # SentencePiece puts a space before a text
    assert row.reason is None


PLAIN = st.text(st.sampled_from("aZ9 .\n<|>[]/:äß中#*`"), min_size=1, max_size=30).filter(str.strip)


@given(st.sampled_from(ALL), st.lists(PLAIN, min_size=1, max_size=4), PLAIN, st.booleans())
def test_any_words_come_back(name, said, response, has_system):
    roles = [["user", "assistant"][k % 2] for k in range(len(said) | 1)]
    chat = [{"role": role, "content": text.strip()} for role, text in zip(roles, [*said, "x"], strict=False)]
    chat = [SYSTEM, *chat] if has_system else chat
    prompt = rendered(name, chat)
    turns = Turns(tokenizer(name))
    assert turns.prompt(prompt) == chat
    row = turns.row(prompt, prompt + response + tokenizer(name).eos_token, has_prompt=True)
    assert row.response == response or row.reason  # such as "[/INST]" made of these letters
    assert (row.response is None) == (row.reason is not None)


@pytest.mark.parametrize("policy", ["qwen", "llama3", "deepseek", "llama2"])
@pytest.mark.parametrize("name", ["qwen", "llama3", "deepseek", "llama2"])
def test_a_prompt_of_another_template_is_refused(name, policy):
    prompt = rendered(policy, [SYSTEM, USER])
    if policy != name:
        with pytest.raises(InputError, match=r"^prompt: expected what the chat template of this tokenizer writes"):
            Turns(tokenizer(name)).row(prompt, prompt + "4.", has_prompt=True)


def test_the_variables_are_those_of_the_host():
    thinking, not_thinking = (rendered("qwen", [USER], enable_thinking=on) for on in (True, False))
    assert thinking != not_thinking
    turns = Turns(tokenizer("qwen"), chat_template_kwargs={"enable_thinking": False})
    assert turns.prompt(not_thinking) == [USER]
    with pytest.raises(InputError, match=r"with the same chat_template_kwargs\?"):
        turns.prompt(thinking)


@pytest.mark.parametrize("name", ["qwen", "llama3", "deepseek", "llama2"])
def test_a_response_that_goes_on_with_more_turns_is_refused(name):
    whole = tokenizer(name).apply_chat_template([USER, ASSISTANT, USER, ASSISTANT], tokenize=False)
    going_on = whole.partition(ASSISTANT["content"])[2]
    row = Turns(tokenizer(name)).row(rendered(name, [USER]), "Four." + going_on, has_prompt=False)
    assert row.response is None
    assert "expected text of one turn, found" in row.reason


def test_turns_of_other_roles_are_refused():
    tool = {"role": "tool", "content": "5 degrees"}
    row = Turns(tokenizer("qwen")).row(rendered("qwen", [USER, ASSISTANT, tool]), "It is cold.", has_prompt=False)
    assert "expected turns of system, user and assistant" in row.reason


def test_a_query_without_its_prompt_is_refused():
    prompt = rendered("qwen", [USER])
    row = Turns(tokenizer("qwen")).row(prompt, prompt[5:] + "4.", has_prompt=True)
    assert "expected a text that begins with its prompt" in row.reason


def test_only_the_end_is_cleaned():
    turns = Turns(tokenizer("qwen"))
    assert turns.response(" 4.\n<|im_end|>\n<|endoftext|><|endoftext|>") == " 4.\n"
    assert turns.response(" 4.\n ") == " 4.\n "
    assert turns.response("<think>\nhm\n</think>\n\n4.") == "<think>\nhm\n</think>\n\n4."
    assert turns.response("<|im_end|>") == ""


def test_a_template_without_tokens_of_its_own():
    tok = wrap(tokenizer.__wrapped__("gpt2").backend_tokenizer, BRIEF, eos_token="<|endoftext|>")
    turns = Turns(tok)
    assert turns.prompt("USER: Hi\nASSISTANT: Hello.\nUSER: 2 + 2?\nASSISTANT: ") == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert turns.response("4.<|endoftext|>") == "4."
    with pytest.raises(InputError, match="expected text of one turn"):
        turns.response("4.\nUSER: And 3 + 3?")


def test_a_format_in_place_of_a_template():
    turns = Turns(tokenizer("qwen"), input_template="Q: {}\nA: ")
    row = turns.row("Q: 2 + 2?\nA: ", "Q: 2 + 2?\nA: 4.<|im_end|>", has_prompt=True)
    assert (row.prompt, row.response) == ("2 + 2?", "4.")
    with pytest.raises(InputError, match=r"expected what 'Q: {}.nA: ' writes, got '2 . 2.'"):
        turns.prompt("2 + 2?")
    with pytest.raises(InputError, match=r"input_template: expected a text with \{\} once"):
        Turns(None, input_template="Q:")
    assert Turns(tokenizer("qwen"), input_template="{}").prompt("2 + 2?") == "2 + 2?"


def test_a_tokenizer_without_a_template_is_refused():
    tok = wrap(tokenizer.__wrapped__("gpt2").backend_tokenizer, None)
    with pytest.raises(InputError, match="tokenizer: expected one with a chat template"):
        Turns(tok).prompt("2 + 2?")


def test_messages_stay_as_they_are():
    row = Turns(tokenizer("qwen")).row([USER], "4.<|im_end|>", has_prompt=False)
    assert (row.prompt, row.response, row.reason) == ([USER], "4.", None)
