"""From a checkpoint to a runner: a name or folder comes in, an object that runs packed passes goes out."""
