"""From files and the hub to training items: the name of a data set comes in, pairs and packed batches go out."""
