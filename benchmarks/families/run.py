"""Which causal language models of transformers are scored exactly? A tiny random model of each says so.

    python -m benchmarks.families.run [--write docs/families.md]

Builds a model of every registered family, scores a tree of sequences, and compares with plain forwards. Prints the
page, or writes it. It takes less than a minute of one core.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.families.scored import Scored, scored
from benchmarks.families.tiny import FAMILIES, tiny_config, tiny_model, with_windows
from gram_fast.errors import one_line

_HEAD = """# Model families

Which causal language models of transformers are scored exactly, and which are refused and why. This page is made by
`python -m benchmarks.families.run --write docs/families.md`, and a test compares it with what comes out.

Each of the {count} families that transformers {version} registers as a causal language model is built as a tiny random
model, by rules from its default configuration: one layer of each kind, windows and chunks of 8 tokens, soft caps that
bite, several experts. A tree of 7 sequences, with up to 60 tokens where the model's limit allows it, is scored in two
rounds, in passes of at most 24 tokens, in float32. It is exact where every label logit is that of the model's own plain
forward, up to 1e-4 of its size (at least 1), and where wrong attention would move logits by ten times as much or more.
A tiny model says nothing of a checkpoint that sets what its family's default leaves alone: every judge is checked on a
known answer when it is loaded.

*Attention* is what the layers asked of transformers' attention interface in a plain forward, and the other kinds of
layers: windows and chunks of tokens, sinks, soft caps, position biases, values narrower than keys; "of its own" is
attention that does not go through the interface, or none. A family "with windows" is one that has them by configuration
only. *Runner* is what `runner="auto"` chooses. Exact "up to" something: longer sequences are refused.

{summary}
"""


def measure(families: Iterable[str]) -> tuple[list[Scored], dict[str, str]]:
    """What became of these families, and why some could not be built.

    A family that has windows on request is followed by itself with windows.
    """
    results, unbuilt = [], {}
    for family in families:
        try:
            config = tiny_config(family)
            model = tiny_model(config)
        except Exception as error:  # Whatever a configuration or a model raises when it lacks something.
            unbuilt[family] = one_line(error).partition(". ")[0]
            continue
        results.append(scored(family, model))
        if (windowed := with_windows(config)) is not None:
            found = scored(f"{family} with windows", tiny_model(windowed))
            # Some families know the setting and do not use it.
            results += [found] if "windows" in found.attention else []
    return results, unbuilt


def page(results: Sequence[Scored], unbuilt: Mapping[str, str]) -> str:
    """The page of these results, in markdown."""
    kinds = Counter("refused" if r.problem else r.verdict.partition(" ")[0] for r in results)
    words = {"yes": "exact", "up": "exact up to a limit", "refused": "refused", "no": "wrong", "not": "not told"}
    summary = ", ".join(f"{kinds[kind]} are {word}" for kind, word in words.items() if kinds[kind])
    text = _HEAD.format(
        count=len({r.family.partition(" ")[0] for r in results}) + len(unbuilt),
        version=transformers.__version__,
        summary=f"Of {len(results)} models, {summary}.",
    )
    rows = [f"| {r.family} | {r.attention} | {r.runner} | {r.verdict} |" for r in results]
    table = ["| family | attention | runner | exact, or why not |", "|---|---|---|---|", *rows]
    left = [f"- {family}: {reason}." for family, reason in unbuilt.items()]
    return "\n".join(
        [text, *table, "", "## Not built", "", "From a default configuration, without more packages:", "", *left, ""]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page there instead of printing it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    text = page(*measure(FAMILIES))
    if arguments.write:
        arguments.write.write_text(text, "utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
