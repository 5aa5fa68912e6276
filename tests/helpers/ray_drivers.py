"""What tests do on a Ray cluster, in processes of their own: `python ray_drivers.py NAME [ARGUMENT ...]`."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray

from gram_fast.commands.jobs import JobRow
from gram_fast.commands.ray_judges import RayJudges
from gram_fast.errors import GramFastError, InputError
from gram_fast.text.group import Group


class Poisoned:
    """A judge that ends on one row."""

    def load(self) -> Any:
        return (1, {"model": "poisoned"}), []

    def score(self, rows: list[JobRow]) -> Any:
        if rows[0].id == POISON:
            os._exit(1)
        return [(row.id, 1) for row in rows], [f"{len(rows)} rows"]


class Lacking(Poisoned):
    """A judge of which all but the first find no checkpoint; that one takes its time until three have not."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def load(self) -> Any:
        try:
            os.mkdir(self._folder)
        except FileExistsError:
            time.sleep(0.5)  # the first has loaded by then
            tempfile.mkstemp(dir=self._folder)
            return InputError("there is no checkpoint here"), []
        return super().load()

    def score(self, rows: list[JobRow]) -> Any:
        while len(os.listdir(self._folder)) < 3:
            time.sleep(0.1)
        time.sleep(0.2)
        return super().score(rows)


POISON = 3


def scored_by(make: Any, rows: Iterator[JobRow]) -> tuple[list[Any], str]:
    """Scores chunks of one row with two judges -> those that were scored, and the error."""
    judges, scored = RayJudges(make, 2), []
    try:
        for chunk in judges.score(([row] for row in rows), lambda: False):
            scored += [result for _, (result, _) in chunk]  # type: ignore[misc]
    except GramFastError as error:
        return scored, str(error)
    finally:
        judges.close()
    return scored, ""


def faults(folder: str) -> None:
    """Prints what comes of rows that end every judge, of a bad row, and of machines that lack something."""
    group = Group.of("p", ["a", "b"], at_least=1)
    rows = [JobRow(k, "p", ["a", "b"], group, f"line {k}") for k in range(30)]

    def read() -> Iterator[JobRow]:
        yield from rows[10:15]
        raise InputError("line 15: expected JSON")

    poisoned = ray.remote(Poisoned).options(num_cpus=1)
    lacking = ray.remote(Lacking).options(num_cpus=1)
    found = {
        "poison": scored_by(poisoned.remote, iter(rows)),
        "bad row": scored_by(poisoned.remote, read()),
        "lacking": scored_by(partial(lacking.remote, folder), iter(rows[10:])),
    }
    print(json.dumps(found))


def rewards(folder: str) -> None:
    """Judges a data set of groups with two actors; says when the first rows are there, then prints all."""
    from gram_fast.integrations.ray_data import GroupRewards

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    rows = [{"id": k, "prompt": f"Name colour {k}.", "responses": [f"Blue {k}.", "Red.", None]} for k in range(400)]
    judged = ray.data.from_items(rows, override_num_blocks=40).map_batches(
        GroupRewards,
        fn_constructor_kwargs={"judge": folder},
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
        batch_size=10,
        batch_format="pyarrow",
    )
    found = []
    for row in judged.iter_rows():
        found.append(row)
        if len(found) == 1:
            print("begun", flush=True)
            sys.stdin.readline()
    print(json.dumps(found))


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    globals()[sys.argv[1]](*sys.argv[2:])
