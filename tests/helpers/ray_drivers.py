"""What tests do on a Ray cluster, in processes of their own: `python ray_drivers.py NAME [ARGUMENT ...]`."""

import json
import os
import sys
from typing import Any

import ray

from gram_fast.commands.jobs import JobRow
from gram_fast.commands.ray_judges import RayJudges
from gram_fast.errors import ServerError
from gram_fast.text.group import Group


class Poisoned:
    """A judge that ends on one row."""

    def load(self) -> Any:
        return (1, {"model": "poisoned"}), []

    def score(self, rows: list[JobRow]) -> Any:
        if rows[0].id == 3:
            os._exit(1)
        return [(row.id, 1) for row in rows], [f"{len(rows)} rows"]


def poison() -> None:
    """Scores chunks of one row -> those that were scored, and the error."""
    group = Group.of("p", ["a", "b"], at_least=1)
    rows = [JobRow(k, "p", ["a", "b"], group, f"line {k}") for k in range(9)]
    judges = RayJudges(ray.remote(Poisoned).options(num_cpus=1).remote, 2)
    scored = []
    try:
        for chunk in judges.score(([row] for row in rows), lambda: False):
            scored += [result for _, (result, _) in chunk]  # type: ignore[misc]
    except ServerError as error:
        print(json.dumps([scored, str(error)]))


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
