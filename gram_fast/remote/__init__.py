"""A judge that a server runs, as if it were here: `from_server`, and groups whose members meet there."""
