"""Rewards of groups for Ray Data: a class for `map_batches`, one judge an actor.

    from gram_fast.integrations.ray_data import GroupRewards

    ray.data.read_parquet("s3://bucket/groups").map_batches(
        GroupRewards,
        fn_constructor_kwargs={"judge": "NiuTrans/GRAM-Qwen3-1.7B-RewardModel", "strategy": "knockout"},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        num_gpus=1,
        batch_size=256,
        batch_format="pyarrow",
    ).write_parquet("s3://bucket/rewarded")

Ray starts an actor that ends anew and gives what it had to another. Rows stay in order where Ray Data is told so:
`ray.data.DataContext.get_current().execution_options.preserve_order = True`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gram_fast import InputError
from gram_fast.integrations.lazy import AnyJudge, LazyJudge
from gram_fast.integrations.settings import check_settings


class GroupRewards:
    """Adds columns to batches of groups: their rewards, and why responses have none."""

    def __init__(
        self,
        judge: AnyJudge,
        *,
        prompt: str = "prompt",
        responses: str = "responses",
        rewards: str = "rewards",
        errors: str = "errors",
        **settings: Any,
    ) -> None:
        """Loads the judge of an actor.

        Args:
            judge: a folder or a name on the hub; a `gram_fast.integrations.lazy.LazyJudge` where it is loaded with
                options; or a judge, such as that of a server.
            prompt: column of prompts, text or lists of messages.
            responses: column of lists of responses.
            rewards: column that is added: of each response its reward, float64, null where it could not be judged.
            errors: column that is added: of each response why it has none, null where it has one.
            settings: arguments of `PairwiseJudge.rewards`, such as strategy, scores, orders and seed.

        Raises InputError on a wrong setting, and errors like PairwiseJudge.from_pretrained.
        """
        check_settings(settings, has_references=False)
        self._judge = LazyJudge.of(judge).get()
        self._prompt, self._responses, self._rewards, self._errors = prompt, responses, rewards, errors
        self._settings = settings

    def __call__(self, batch: Any) -> Any:
        """Judges a batch, a pyarrow.Table, in one call -> the same with two columns more.

        Raises InputError on another batch, without the columns, and where columns to add are there.
        """
        import pyarrow

        if not isinstance(batch, pyarrow.Table):
            raise InputError(f'batch: expected a pyarrow.Table (batch_format="pyarrow"), got {type(batch).__name__}')
        names = batch.column_names
        for name in (self._prompt, self._responses):
            if name not in names:
                raise InputError(f"expected a column {name!r}, found {', '.join(map(repr, names))}")
        for name in (self._rewards, self._errors):
            if name in names:
                raise InputError(f"column {name!r} is there already: expected another name for what is added")
        prompts, groups = batch[self._prompt].to_pylist(), [g or [] for g in batch[self._responses].to_pylist()]
        found = self._judge.rewards(prompts, groups, on_error="none", **self._settings)
        errors = [
            [_reason(found.errors, (f"groups[{g}][{k}]", f"groups[{g}]", f"prompts[{g}]")) for k in range(len(group))]
            for g, group in enumerate(groups)
        ]
        return batch.append_column(
            self._rewards, pyarrow.array([list(group) for group in found], pyarrow.list_(pyarrow.float64()))
        ).append_column(self._errors, pyarrow.array(errors, pyarrow.list_(pyarrow.string())))


def _reason(errors: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The first reason that one of these names has."""
    return next((errors[name] for name in names if name in errors), None)
