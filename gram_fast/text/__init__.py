"""From text to token ids: prompts and responses, strings or chat messages, come in, encoded pieces go out."""
