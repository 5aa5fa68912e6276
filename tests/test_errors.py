"""Messages stay on one line and keep what matters."""

import pytest

from gram_fast.errors import one_line, shown_value


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("cannot reach the hub\nCheck the connection.", "cannot reach the hub Check the connection."),
        ("one of:\n\n  (1) a file, \n\t(2) another", "one of: (1) a file, (2) another"),
        ("key", "KeyError 'key'"),
        ("", "KeyError ''"),
    ],
)
def test_all_lines_of_another_library_s_message_are_kept_on_one(message, expected):
    error = KeyError(message) if " " not in message else OSError(message)
    assert one_line(error) == expected


def test_a_long_message_keeps_its_beginning_and_the_remedy_at_its_end():
    text = one_line(RuntimeError("Sizes differ:\n" + "layer is [4, 4], not [8, 8]\n" * 300 + "Pass a_remedy=True."))
    assert len(text) < 800
    assert text.startswith("Sizes differ: layer is")
    assert " ... " in text
    assert text.endswith("Pass a_remedy=True.")


@pytest.mark.parametrize(
    ("value", "text"),
    [("knock", "'knock'"), ([1, None], "[1, None]"), ("x" * 100, "str"), (["x" * 100], "list"), ({}, "{}")],
)
def test_a_value_is_shown_where_it_is_short(value, text):
    assert shown_value(value) == text


def test_a_value_of_several_lines_is_shown_as_its_type():
    class Table:
        def __repr__(self):
            return "1 2\n3 4"

    assert shown_value(Table()) == "Table"
