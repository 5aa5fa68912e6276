"""Llama, Qwen2, Qwen3 and Mistral by a model of this package: safetensors come in, a runner of packed passes goes out."""
