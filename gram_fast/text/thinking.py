"""Prompts that end while the model thinks: what follows is reasoning, not a label."""

import re

# Tags of thinking blocks in chat templates: Qwen's and DeepSeek's, Magistral's, Seed-OSS's.
THINKING_TAG = re.compile(r"<(/?)(?:seed:)?think(?:ing)?>|\[(/?)THINK\]")


def is_thinking(prompt_end: str) -> bool:
    """Whether a thinking block is open at the end of what the chat adds behind the user's message."""
    tags = THINKING_TAG.findall(prompt_end)
    return bool(tags) and not any(tags[-1])
