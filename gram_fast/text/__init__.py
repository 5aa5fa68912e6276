"""Text to token ids: reads prompts and responses, renders the judge's prompt, tokenizes it in reusable pieces."""
