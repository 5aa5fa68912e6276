"""The package's rooms and their order: a module imports from its own room and from lower rooms, never upward.

A room is a folder of modules, or a module that ROOMS names: those in gram_fast itself, and one between two folders.
Every import counts: at the top of a file, in a function, under `if TYPE_CHECKING`. What is named
counts, not the __init__.py files that Python runs on the way.
"""

import ast
import glob
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "gram_fast"

# From the lowest to the highest.
ROOMS = {
    "_C": "the compiled part: token tree, plan, C++ and CUDA ops",
    "errors": "what is raised",
    "web": "what all clients of servers share: checks, how long to wait before another try",
    "hub": "whether the Hugging Face hub can be reached",
    "extension": "the compiled part, or the error that says how to build it",
    "kernels": "plain references and Triton kernels of the ops, and how their tables are laid out",
    "ops": "the public ops: checks, fakes, the choice of backends, the tables of a pass",
    "results": "what a judge returns",
    "rows": "rows of files, data sets and standard input with their places",
    "devices": "devices and dtypes by name",
    "text": "from prompts and responses to token ids",
    "scoring": "token tree, plan, engine, kept keys and values; processes",
    "models/output": "what a model makes of the products of its output embedding",
    "models/supported": "what an architecture must be",
    "models/files": "which files a checkpoint is",
    "models/dense": "the runner that computes dense decoders itself",
    "models/linear": "recurrent layers and short convolutions of hybrid models, over trees",
    "models": "the runner of any decoder, checkpoints, options, loading, the check at load",
    "comparing": "from pairs to preferences: what a comparer is, the one over label logits, replicas",
    "generating": "judges that write a rationale before their verdict",
    "ranking": "strategies, tournaments, scores",
    "gathering": "groups whose members come one at a time",
    "judge": "PairwiseJudge: all of the above behind one class",
    "reasoning_judge": "ReasoningJudge: the same behind a judge that writes",
    "rendezvous": "rewards for loops that ask for one response at a time",
    "remote": "a judge that a server runs",
    "__init__": "what `import gram_fast` gives",
    "integrations": "reward functions of RL trainers and other hosts",
    "commands": "options, rows and diagnosis of the command line",
    "evaluation": "the three benchmarks",
    "training/data": "from files and the hub to batches",
    "training": "objectives, the stages, proofs, the trainer",
    "training/self_training": "proofs of labels, and rounds of training on a judge's own verdicts",
    "training/small_judge": "how the small judge was made",
    "serving": "a judge behind HTTP",
    "cli": "the command line",
    "__main__": "the command line as python -m gram_fast",
}

Import = tuple[str, str]  # the modules that imports and that is imported


def read_modules(folder: Path) -> dict[str, Path]:
    """Files of a package by the names that they are imported by, those behind links and stubs of extensions too."""
    found = {}
    for name in sorted(glob.iglob("**/*.py*", root_dir=folder, recursive=True)):
        path = Path(name)
        if path.suffix in (".py", ".pyi"):
            parts = path.with_suffix("").parts
            found[".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = folder / path
    return found


def names_imported(module: str, file: Path) -> Iterator[str]:
    """Of `from a import b` a.b: whether b is a module is for the caller to know."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def read_imports(modules: dict[str, Path]) -> set[Import]:
    """Who imports whom, within the package."""
    found = set()
    for module, file in modules.items():
        for name in names_imported(module, file):
            while name not in modules and "." in name:
                name = name.rpartition(".")[0]
            if name in modules and name != module:
                found.add((module, name))
    return found


def room_of(module: str, modules: dict[str, Path]) -> str:
    path = module.split(".")[1:]
    if "/".join(path) in ROOMS:
        return "/".join(path)
    folder = path if modules[module].name == "__init__.py" else path[:-1]
    return "/".join(folder or path) or "__init__"


def upward_imports(folder: Path) -> dict[Import, str]:
    """A sentence on each import from a room that is higher than the importer's."""
    modules, order = read_modules(folder), list(ROOMS)
    found = {}
    for importer, imported in sorted(read_imports(modules)):
        own, other = room_of(importer, modules), room_of(imported, modules)
        if order.index(other) > order.index(own):
            found[importer, imported] = (
                f"{importer} imports {imported}, but a module may import only from its own room and from lower rooms: "
                f"in ROOMS '{other}' is higher than '{own}'"
            )
    return found


def circle_of_imports(folder: Path) -> str:
    """A sentence on the modules of one circle, or nothing."""
    modules = read_modules(folder)
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, imported in read_imports(modules):
        graph[module].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return f"{' is imported by '.join(error.args[1])}: modules may not import each other in a circle"
    return ""


def test_every_room_exists_and_every_module_is_in_one() -> None:
    modules = read_modules(REPOSITORY / PACKAGE)
    homeless = {module: room for module in modules if (room := room_of(module, modules)) not in ROOMS}
    assert not homeless, f"every module must be in a room of ROOMS: {homeless}"
    empty = set(ROOMS) - {room_of(module, modules) for module in modules}
    assert not empty, f"every room of ROOMS must have a module: {empty}"


def test_no_module_imports_from_a_higher_room() -> None:
    found = upward_imports(REPOSITORY / PACKAGE)
    assert not found, "\n".join(found.values())


def test_no_modules_import_each_other_in_a_circle() -> None:
    circle = circle_of_imports(REPOSITORY / PACKAGE)
    assert not circle, circle


def plant(folder: Path, **sources: str) -> Path:
    """A package of these modules: of `text__cuts` the file is text/cuts.py."""
    for name, source in sources.items():
        path = folder.joinpath(PACKAGE, *name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")
    return folder / PACKAGE


@pytest.mark.parametrize(
    "source",
    [
        "import gram_fast.ranking.play",
        "import os, gram_fast.ranking.play as p",
        "from gram_fast.ranking.play import play",
        "from gram_fast.ranking import play as p",
        "from ..ranking.play import play",
        "from ..ranking import play",
        "def late():\n    from gram_fast.ranking.play import play",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gram_fast.ranking.play import play",
        "try:\n    import gram_fast.ranking.play\nexcept ImportError:\n    pass",
    ],
)
def test_a_planted_upward_import_is_found(source: str, tmp_path: Path) -> None:
    folder = plant(tmp_path, text__cuts=source, ranking__play="from gram_fast.text import group", text__group="")
    assert upward_imports(folder) == {
        ("gram_fast.text.cuts", "gram_fast.ranking.play"): (
            "gram_fast.text.cuts imports gram_fast.ranking.play, but a module may import only from its own room and "
            "from lower rooms: in ROOMS 'ranking' is higher than 'text'"
        )
    }


def test_an_import_from_a_folder_inside_or_from_the_package_itself_may_be_upward(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train.py").write_text("from gram_fast.training.small_judge import make", "utf-8")
    sources = {"training__small_judge__make": "", "judge": "import gram_fast", "models__dense__model": ""}
    folder = plant(tmp_path, **sources, models__loading="from gram_fast.models.dense.model import DenseModel")
    (folder / "__init__.py").write_text("from gram_fast.judge import PairwiseJudge", "utf-8")
    (folder / "training" / "train.py").symlink_to(tmp_path / "elsewhere" / "train.py")
    assert set(upward_imports(folder)) == {
        ("gram_fast.judge", "gram_fast"),
        ("gram_fast.training.train", "gram_fast.training.small_judge.make"),
    }


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    folder = plant(
        tmp_path,
        text__cuts="from gram_fast.text import group",
        text__group="def late():\n    from gram_fast.text.tokens import encode",
        text__tokens="from .cuts import cut\nfrom gram_fast.errors import InputError",
        errors="",
    )
    assert not upward_imports(folder)
    circle = circle_of_imports(folder)
    assert circle.endswith(": modules may not import each other in a circle")
    assert circle.count(" is imported by ") == 3
    assert all(f"gram_fast.text.{name}" in circle for name in ("cuts", "group", "tokens"))
    (folder / "text" / "tokens.py").write_text("from gram_fast.errors import InputError", "utf-8")
    assert circle_of_imports(folder) == ""


@pytest.mark.parametrize("folder", ["tests", "benchmarks/tests"])
def test_tests_share_through_helpers_and_know_no_benchmark_but_their_own(folder: str) -> None:
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        for name in names_imported(file.stem, file):
            first, *_ = parts = name.split(".")
            wrong = f"{file.relative_to(REPOSITORY)} imports {name}, but "
            assert not any(part.startswith("test_") for part in parts), f"{wrong}what tests share is in tests/helpers"
            assert first != "benchmarks" or folder != "tests", f"{wrong}tests of benchmarks are in benchmarks/tests"
