"""From token ids to label logits: pairs as lists of segments come in, two logits a pair go out, each prefix computed once."""
