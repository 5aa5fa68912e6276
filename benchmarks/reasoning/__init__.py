"""Judges that reason, shown small and whole: trained directly, with rationales, and by proving and self-training."""
