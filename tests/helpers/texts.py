"""Templates and texts that are awkward to cut and to encode."""

from hypothesis import strategies as st

from gram_fast.text.prompts import PairTemplate

TEMPLATES = {
    "gram": PairTemplate.load("gram"),
    "gram-demo": PairTemplate.load("gram-demo"),
    # Other order, text of no ASCII character, a slot in the middle of a line.
    "custom": PairTemplate.parse(
        "Zwei Antworten auf eine Frage: welche ist besser?\n\nErste Antwort (B): «{response_b}» (Ende von B).\n\n"
        "Question: {input}\n\nAnswer A follows.\n{response_a}\n\nEnd of answer A. The better answer is "
    ),
}
AWKWARD = [
    "",
    "Why?",
    "yes!!!",
    "]",
    "\n",
    "\n\n\n",
    "line\n",
    " ",
    "   two spaces around   ",
    "👩\u200d💻",
    "\u200d😀\ufe0f",
    "\u0301combining mark first",
    "e\u0301 is not é",
    "```python\n",
    "```",
    "a\r\nb\r\n",
    "\r",
    "\t\ttabs\t",
    "\x00\x01\x1b[0m\x7f",
    "[The End of Assistant A's Answer]\n\n[The Start of Assistant B's Answer]\n",
    "[",
    "#Preferred: A",
    "1234567 2 + 2 = 4",
    "90",
    "'s",
    "don't we'LL",
    "'",
    "中文。",
    "مرحبا",
    "தமிழ்",
    "\u0bbf",
    "\u00a0nbsp\u00a0",
    "zero\u200bwidth\u200b",
    "ﬁ ³ Ⅷ Å",
    "\ue000" + "0\ue001",
    "{input}{{x}}",
    "<|im",
    "word",
]
ANY_TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(AWKWARD)), max_size=4).map("".join)
