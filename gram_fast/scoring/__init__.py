"""Token ids to label logits: plans and runs forwards over a prefix tree, two logits for each presentation."""
