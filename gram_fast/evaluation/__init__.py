"""Benchmarks of pairwise judges: which of two responses is better, where the answer is known.

rows.py         reads data files into BenchmarkPairs and result files into Results
run.py          scores BenchmarkPairs in both orders with a judge and writes result rows
rewardbench.py  judgebench.py  rmbench.py    data format, score definitions and leaderboard files of one benchmark
calibration.py  reliability, position bias and length bias of a judge
summary.py      all numbers of one result file
"""

from gram_fast.evaluation import judgebench, rewardbench, rmbench
from gram_fast.evaluation.rows import Benchmark

BENCHMARKS: dict[str, Benchmark] = {module.NAME: module for module in (rewardbench, judgebench, rmbench)}
