"""Models: loads a checkpoint into a runner, the object that runs packed passes."""
