"""Training data: the name of a data set comes in; pair records, tokenized pairs and packed batches go out."""
