"""How much processor time does it take to import the package, to print help and to load a judge, and how large is it?

    python -m benchmarks.importing [--trees . OLD] [--repeats 5] [--installed PYTHON]

Each command runs in a Python of its own, as often as `--repeats` says, the trees (checkouts with the extension built)
in turn. Prints medians of user and system seconds, of all threads together; on busy cores they are up to twice as many,
so `import torch` is there to compare with.

`--installed` lists what each distribution takes in that Python's environment, in MB, as its own list of files says.
Ends with one line of JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import environment

_MAIN = "from gram_fast.cli import main; main()"
_LOAD = "import gram_fast; gram_fast.PairwiseJudge.from_pretrained(gram_fast.SMALL_JUDGE)"
COMMANDS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import gram_fast": ["-c", "import gram_fast; gram_fast.PairwiseJudge"],
    "load the small judge": ["-c", _LOAD],
    "gram-fast --help": ["-c", _MAIN, "--help"],
    "gram-fast rank --help": ["-c", _MAIN, "rank", "--help"],
    "gram-fast eval rewardbench --help": ["-c", _MAIN, "eval", "rewardbench", "--help"],
    "gram-fast train finetune --help": ["-c", _MAIN, "train", "finetune", "--help"],
}
_SIZES = """
import json
from importlib.metadata import distributions
sizes = {}
for one in distributions():
    places = [file.locate() for file in one.files or ()]
    sizes[one.metadata["Name"]] = sum(place.stat().st_size for place in places if place.is_file())
print(json.dumps(sizes))
"""


def cpu_seconds(arguments: list[str], tree: Path) -> float:
    """Processor time, user and system, of a Python that runs with these arguments and the package of this tree."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,  # where -c looks for packages first
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def installed_megabytes(python: str) -> dict[str, float]:
    """Megabytes of every distribution that this Python finds, the largest first."""
    done = subprocess.run([python, "-I", "-c", _SIZES], stdout=subprocess.PIPE, text=True, check=True)
    sizes = sorted(json.loads(done.stdout).items(), key=lambda one: -one[1])
    return {name: size / 1e6 for name, size in sizes}


def main() -> None:
    """Measures every command with every tree, and what is installed, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trees", type=Path, nargs="+", default=[Path()])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--installed", metavar="PYTHON")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for name, command in COMMANDS.items():
        runs = [[cpu_seconds(command, tree) for tree in arguments.trees] for _ in range(arguments.repeats)]
        seconds[name] = [statistics.median(of_tree) for of_tree in zip(*runs, strict=True)]
        print(f"{name:>34}: {', '.join(f'{median:.2f}' for median in seconds[name])} s", flush=True)
    asked = {"trees": [str(tree) for tree in arguments.trees], "repeats": arguments.repeats}
    record: dict[str, Any] = {"benchmark": "importing", **asked, "cpu_seconds": seconds}
    if arguments.installed:
        record["installed_mb"] = installed = installed_megabytes(arguments.installed)
        for name, size in installed.items():
            print(f"{name:>34}: {size:.1f} MB")
        print(f"{'all':>34}: {sum(installed.values()):.0f} MB")
    print(json.dumps({**environment(), **record}))


if __name__ == "__main__":
    main()
