"""Dense runner: runs packed passes of Llama, Qwen2, Qwen3 and Mistral with a model of this package."""
