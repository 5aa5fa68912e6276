"""Making of the small judge that ships with the package: from random seeds to generated tasks, model and model card.

It is trained from nothing on generated tasks whose answer a program can check, so that it can be remade, is free of
other models' licences, and has a test with a known truth. Its weights are in the repository (float16).
"""
