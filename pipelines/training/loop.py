"""TRL's SFTTrainer as the training stages use it: its arguments, checkpoints, loss curve and progress bar."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from pipelines.data.tokens import IGNORED
from pipelines.training.launch import split_batch
from pipelines.training.order import LikeLengthSampler
from pipelines.training.settings import TrainConfig

log = logging.getLogger(__name__)

_COMPLETE = "complete"


def trainer_arguments(settings: TrainConfig, work: Path) -> SFTConfig:
    """The SFTConfig of a training stage on this machine: float32 on a CPU, bf16 autocast on a GPU."""
    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    micro, accumulation = split_batch(settings.batch_size, settings.micro_batch_size, processes)
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(work),
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs or 1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_length=settings.max_length,
        packing=settings.packing,
        completion_only_loss=settings.responses_only,
        router_aux_loss_coef=settings.load_balancing,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=on_gpu and settings.dtype == "bfloat16",
        use_cpu=not on_gpu,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        dataloader_num_workers=0,
        report_to="none",
        disable_tqdm=True,
        # the data come tokenized and cut; only packing is left to TRL
        dataset_kwargs={"skip_prepare_dataset": not settings.packing},
    )


class RouterTrainer(SFTTrainer):
    """SFTTrainer that stops at a non-finite loss, prints nothing, is quicker on a CPU and resumes experts too."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_Checkpoints)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """SFTTrainer's loss, on a CPU from the whole logits.

        SFTTrainer works in chunks and adds up entropy and accuracy: right for a vocabulary of 150,000 on a GPU, a
        sixth of the step at the tiny scale.
        """
        if not self.args.use_cpu or return_outputs or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**inputs, **extra, use_cache=False)
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        loss = cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum") / num_items_in_batch
        # num_items_in_batch counts every process's tokens, and gradients are averaged over processes
        loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            self._metrics["train"]["aux_loss"].append(outputs.aux_loss.item())
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        """Batches of like length, unless packing makes every sequence as long."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        arguments: Any = self.args
        # a whole step's sequences, so that their division over processes and accumulation changes nothing
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        if arguments.packing or len(dataset) < batch:
            return super()._get_train_sampler(train_dataset)
        lengths = [len(ids) for ids in dataset["input_ids"]]
        return LikeLengthSampler(lengths, batch, arguments.data_seed or arguments.seed)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the checkpoint's weights through from_pretrained.

        Trainer hands the published layout, one expert a key, to load_state_dict, which drops every expert with a
        warning: the experts would go on from the base model's.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        current: Any = self.model
        loaded = type(current).from_pretrained(resume_from_checkpoint, dtype=current.dtype)
        current.load_state_dict(loaded.state_dict(), strict=True)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; the learning rate "
                f"({self.args.learning_rate:g}) may be too high, or the base model's weights damaged"
            )
        return loss


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint once everything of it is written, since a killed process may leave half of one.

    None is written at the last step: the finished model follows at once, and a Trainer that resumes there would train
    one step too many.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()


def complete_checkpoint(work: Path) -> Path | None:
    """The last checkpoint that was written to its end."""
    found = {int(path.parent.name.split("-")[1]): path.parent for path in work.glob(f"checkpoint-*/{_COMPLETE}")}
    return found[max(found)] if found else None


class LossCurve(TrainerCallback):
    """loss.jsonl: step, loss and what else the trainer logs, one object a line, also across a resume."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.path.write_text("".join(self._line(entry) for entry in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            with self.path.open("a") as file:
                file.write(self._line(state.log_history[-1]))

    @staticmethod
    def _line(entry: dict[str, Any]) -> str:
        return json.dumps(entry) + "\n" if "loss" in entry else ""


class Progress(TrainerCallback):
    """One progress bar over the steps, with the last logged loss."""

    def __init__(self, label: str):
        self.label = label
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", mininterval=1
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
