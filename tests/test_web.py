"""Addresses of servers: what is none is refused, and a password in one is never shown."""

import pytest

from gram_fast import InputError, ReasoningJudge, from_server
from gram_fast.generating.options import ReasoningOptions
from gram_fast.generating.server_generator import ServerGenerator
from gram_fast.web import check_url

SECRET = [
    "http://user:secret@host",
    "https://user:secret@host:8000/v1",
    "http://secret@host",
    "http://:secret@[::1]:80",
    "http://user:sec/ret@host",
    "http://user:sec#ret@host",
    "HTTP://user:secret@host",
    "user:secret@host",
]


@pytest.mark.parametrize(
    "make",
    [
        check_url,
        from_server,
        lambda url: ReasoningJudge.from_server(url, "judge"),
        lambda url: ServerGenerator(["http://127.0.0.1:1", url], "judge", by_ids=True),
    ],
)
@pytest.mark.parametrize("url", SECRET)
def test_a_user_or_password_in_an_address_is_refused_and_not_shown(make, url):
    with pytest.raises(InputError) as raised:
        make(url)
    assert str(raised.value) == (
        "url: expected http://HOST:PORT without a user or password: a server's key is given as api_key"
    )


def test_one_among_engines_is_refused_before_any_of_them_is_shown():
    for engine in ("http://host, http://user:secret@host", ["vllm", "http://user:secret@host"]):
        with pytest.raises(InputError, match="without a user or password"):
            ReasoningOptions(engine=engine)


@pytest.mark.parametrize(
    "url", ["http://host", "https://host:8000/v1", "http://[::1]:80/@team/v1", "http://host/@a:b", "http://host?at=a@b"]
)
def test_other_addresses_are_taken(url):
    check_url(url)
