"""Making of the small judge that ships with the package: from random seeds to generated tasks, model and model card."""
