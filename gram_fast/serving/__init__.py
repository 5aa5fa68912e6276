"""A judge behind HTTP: the protocols that scorers, rerankers and RL trainers speak, on FastAPI and uvicorn."""
