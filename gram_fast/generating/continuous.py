"""Answers by transformers' continuous batching, which refills a batch when an answer ends."""

from collections.abc import Generator, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig

from gram_fast.errors import BackendError
from gram_fast.generating.batch import Row, Written
from gram_fast.models.callers import in_eval_mode
from gram_fast.scoring.engine import CPU_BUDGET
from gram_fast.scoring.stops import StoppedError, stop_of_call

# Seconds between two looks at whether the call is to stop.
_LOOK = 0.1


def write_continuously(model: Any, rows: Sequence[Row], config: Any, max_tokens: int) -> Generator[Written, None, None]:
    """Writes the answers of rows, in the order in which they end.

    Args:
        model: of transformers; until the iterator ends it is in eval mode and has a paged attention.
        rows: answers wanted.
        config: `drawing.generation_config`.
        max_tokens: most tokens whose keys and values are held.

    Raises StoppedError once the call is to stop, BackendError where transformers gives up.
    """
    is_stopped = stop_of_call()
    if not rows:
        return
    options = ContinuousBatchingConfig(seed=rows[0].seed)
    # By itself it would take most of the memory of the machine.
    longest = max(len(row.ids) + row.limit for row in rows)
    options.num_blocks = -(-max(max_tokens, longest) // options.block_size)
    if model.device.type == "cpu":
        # Else it makes tables for the longest step that memory has room for, in every step: a hundred times the time.
        options.max_batch_tokens = CPU_BUDGET
    with in_eval_mode(model):
        manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=options)
        try:
            manager.start()
            for number, row in enumerate(rows):
                manager.add_request(row.ids.tolist(), str(number), row.limit)
            for _ in rows:
                found = None
                while found is None:
                    if is_stopped():
                        raise StoppedError("the call was stopped while answers were written")
                    if not manager.is_running():
                        raise BackendError("transformers' continuous batching ended before all answers were written")
                    found = manager.get_result(timeout=_LOOK)
                if found.error is not None:
                    raise BackendError(f"transformers' continuous batching failed: {found.error}")
                yield Written(rows[int(found.request_id)], found.generated_tokens)
        finally:
            manager.stop(hard_stop=True)
            manager.destroy()
