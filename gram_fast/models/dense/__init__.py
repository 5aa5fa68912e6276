"""Llama, Qwen2, Qwen3 and Mistral by our own model: safetensors come in, a runner of packed passes goes out."""
