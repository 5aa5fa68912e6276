"""Benchmarks of pairwise judges: which of two responses is better, where the answer is known.

rows.py         a data file -> Pairs, a result file -> Results
run.py          Pairs -> Results, scored by a judge in both orders
rewardbench.py  judgebench.py  rmbench.py    what a benchmark counts, and the files of its leaderboard
calibration.py  what the results say of the judge: reliability, position and length
summary.py      everything about one result file
"""

from gram_fast.evaluation import judgebench, rewardbench, rmbench
from gram_fast.evaluation.rows import Benchmark

BENCHMARKS: dict[str, Benchmark] = {module.NAME: module for module in (rewardbench, judgebench, rmbench)}
