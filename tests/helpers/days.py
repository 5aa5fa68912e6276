"""Another day, for chat templates that write the date."""

from datetime import datetime

import pytest


def set_today(monkeypatch: pytest.MonkeyPatch, year: int, month: int, day: int) -> None:
    """Makes the chat templates of transformers, and the package, believe that it is that day."""

    class Moved(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return cls(year, month, day, 12)

    for module in ("transformers.utils.chat_template_utils", "gram_fast.text.dates", "gram_fast.text.prompts"):
        monkeypatch.setattr(f"{module}.datetime", Moved)
