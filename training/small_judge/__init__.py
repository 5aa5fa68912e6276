"""How the small judge is made: nothing comes in, generated tasks and a trained judge with its card go out."""
