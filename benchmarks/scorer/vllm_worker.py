"""Runs vLLM for benchmarks/scorer/vllm_rival.py, in a process and a Python of its own: it imports nothing of ours.

    PYTHON benchmarks/scorer/vllm_worker.py DESCRIPTOR

Standard input has one JSON line with the options of vllm.LLM, then one for each run: {"prompts": lists of token ids,
"labels": the two label ids}. The answers, a JSON line each, go to the file descriptor DESCRIPTOR, as vLLM's processes
write on standard output: first {"version"} of vLLM, then {"logprobs": of the labels, for each prompt, "tokens": those
that were not found in the prefix cache, which is empty when a run begins}.
"""

import json
import os
import sys
from typing import Any

Line = dict[str, Any]


def run(llm: Any, asked: Line) -> Line:
    """Generates one token for each prompt, of the two labels."""
    from vllm import SamplingParams  # type: ignore[import-not-found,unused-ignore]

    labels = asked["labels"]
    llm.reset_prefix_cache()
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in asked["prompts"]],
        SamplingParams(max_tokens=1, temperature=0.0, logprobs=2, allowed_token_ids=labels),
        use_tqdm=False,
    )
    return {
        "logprobs": [[output.outputs[0].logprobs[0][label].logprob for label in labels] for output in outputs],
        "tokens": sum(len(output.prompt_token_ids) - (output.num_cached_tokens or 0) for output in outputs),
    }


def main() -> None:
    """Loads the model and answers until standard input ends."""
    import vllm

    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # else vLLM's own processes could hold it open when this one is gone
    with open(descriptor, "w", buffering=1, encoding="utf-8") as answers:
        llm = vllm.LLM(**json.loads(sys.stdin.readline()))
        print(json.dumps({"version": vllm.__version__}), file=answers)
        for line in sys.stdin:
            print(json.dumps(run(llm, json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
