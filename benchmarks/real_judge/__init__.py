"""Does a small real model learn real preferences, and do GRAM's claims hold on them? Run as benchmarks.real_judge."""
