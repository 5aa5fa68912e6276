"""From token ids to label logits: pairs as lists of segments come in, two logits for each go out."""
