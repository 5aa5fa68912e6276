"""From prompts and responses as users write them to token ids: strings or chat messages come in, encoded pieces go out."""
