"""transformers' Trainer with losses and weights that are finite, and checkpoints that are whole or absent."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from gram_fast.errors import InputError, NumericalError, one_line
from gram_fast.training.checkpoints import checkpoints
from gram_fast.training.sampler import PromptSampler
from gram_fast.training.saving import SAVING, check_weights, cleared, replace, sync, weight_not_finite, writing


class JudgeTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that stops at a loss that is not finite and gives a checkpoint its name when it is on the disk.

    Methods with an underscore are those of transformers 5.17; tests of saving and checkpoints hold what they rely on.
    """

    pairs_together = 1
    """Most pairs of one prompt that share a training batch."""
    _step_loss: Tensor | float = 0.0
    _stages_checkpoint = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.pairs_together == 1:
            return super()._get_train_sampler(train_dataset)
        prompts = [row["prompt"] for row in train_dataset or self.train_dataset]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # Not from accelerate, which tells samplers nothing where a run of several processes is resumed.
        return PromptSampler(
            prompts, self.pairs_together, self._train_batch_size, seed, lambda: int(self.state.epoch or 0)
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward.

        Raises NumericalError before an optimizer step whose loss, the sum of this process' accumulated batches, is not
        finite. That waits for the device once a step; transformers' logging_nan_inf_filter, which is off, waits in
        every batch.
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = loss + self._step_loss
        if self.accelerator.sync_gradients:
            step_loss, self._step_loss = float(self._step_loss), 0.0
            if not math.isfinite(step_loss):
                raise NumericalError(self._why_not_finite(step_loss))
        return loss

    def _why_not_finite(self, loss: float) -> str:
        step = self.state.global_step + 1
        found = checkpoints(Path(self.args.output_dir))
        kept = f"{found[max(found)].name} has the last weights saved" if found else "no checkpoint was written yet"
        if weight := weight_not_finite(self.model):
            cause = f"the weight {weight!r} is not finite"
            if self.state.global_step == 0:
                return f"the loss of step 1 is {loss}: {cause} in the checkpoint that training starts from"
            cause = f": {cause} since step {step - 1}"
        else:
            cause = ", though the weights are finite"
        return (
            f"the loss of step {step} is {loss}{cause}: try a lower learning_rate, a longer warmup or dtype float32 in "
            f"another output_dir; {kept}"
        )

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        """Skips all epochs where the checkpoint is the last one: transformers would train one step more."""
        epochs, steps = super()._init_training_state(*args)
        max_steps, _, num_train_epochs, *_ = args
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else (epochs, steps)

    def create_optimizer(self, model: Any = None) -> Any:
        """Raises InputError where `optim` and what belongs to it cannot be."""
        with _reported("cannot make the optimizer"):
            return super().create_optimizer(model)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InputError where `lr_scheduler_type` and what belongs to it cannot be."""
        with _reported("cannot make the scheduler"):
            return super().create_scheduler(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads onto "cpu", where several processes train on CPUs: torch.load does not know their device "cpu:0"."""
        if self.args.device.type == "cpu":
            self.args.__dict__["_setup_devices"] = torch.device("cpu")  # what args.device caches
        with _reported(f"cannot resume from {checkpoint}"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _reported(f"cannot resume from {resume_from_checkpoint}"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        remedy = "moved away, resume_from_checkpoint=true goes on without it"
        with _reported(f"cannot load the best checkpoint {best} ({remedy})"):
            super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raises InputError for weights that a checkpoint lacks or has too many: transformers warns and trains on."""
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        loaded = {id(weight) for name, weight in weights.items() if name not in load_result.missing_keys}
        # A tied weight has two names, of which one is in the file.
        never_saved = self.model._keys_to_ignore_on_save or ()
        missing = [
            name for name in load_result.missing_keys if name not in never_saved and id(weights.get(name)) not in loaded
        ]
        for names, what in ((missing, "lacks"), (load_result.unexpected_keys, "has other weights than the model:")):
            if names:
                raise InputError(f"the checkpoint {what} {names[0]!r} and {len(names) - 1} more")

    def check_writes_whole_weights(self) -> None:
        """Raises InputError where processes divide the weights and would not put them together for the result."""
        state = self.accelerator.state
        if (plugin := getattr(state, "fsdp_plugin", None)) and "FULL" not in str(plugin.state_dict_type):
            raise InputError(
                f"fsdp_state_dict_type: expected FULL_STATE_DICT, got {plugin.state_dict_type.name}, of which no whole "
                "model would be written"
            )
        if plugin := getattr(state, "deepspeed_plugin", None):
            zero = plugin.deepspeed_config.get("zero_optimization", {})
            if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
                raise InputError("zero3_save_16bit_model: expected true, without which no whole model would be written")

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(Path(folder) / SAVING) if self._stages_checkpoint else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint into `SAVING` and renames it; none is left where that fails."""
        folder = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged, final = folder / SAVING / name, folder / name
        check_weights(self.model, name)
        with cleared(staged if self.args.should_save else None), writing(name, folder):
            self._stages_checkpoint = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._stages_checkpoint = False
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / "trainer_state.json"))
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                _publish(staged, final)
            self.accelerator.wait_for_everyone()
            # A machine with a disk of its own; on a shared one its view of the folder may be out of date.
            if self.is_local_process_zero() and staged.is_dir() and not final.exists():
                with suppress(FileNotFoundError):
                    _publish(staged, final)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )


@contextmanager
def _reported(failure: str) -> Iterator[None]:
    """Raises what transformers and torch raise, of which they have many types, as an InputError."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{failure}: {one_line(error)}") from error


def _publish(staged: Path, final: Path) -> None:
    sync(staged)
    replace(staged, final)
