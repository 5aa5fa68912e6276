"""Judges that write a rationale before their verdict: who writes, how verdicts are read, and the comparer over them."""
