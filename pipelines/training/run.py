"""The training stages, by TRL's SFTTrainer: `pretrain` from random weights, `finetune` from a base, `sft` of a merge,
`router_sft` of its routers alone.

The loss is on responses only (or on every token), the router's load-balancing loss on or off by its coefficient. A
killed run resumes from its last complete checkpoint under `out/trainer`, which is gone when the stage has finished.
`python -m pipelines.training.run JOB` is what `accelerate launch` starts when more than one process is asked for.
"""

import json
import logging
import math
import random
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from pipelines.data import load_records
from pipelines.data.calibration import calibration_records
from pipelines.data.tokens import count_tokens, tokenize
from pipelines.places import CONF
from pipelines.stages.finetune import FinetuneConfig
from pipelines.stages.pretrain import PretrainConfig
from pipelines.stages.router_sft import RouterSftStageConfig
from pipelines.stages.sft import SftConfig
from pipelines.training.launch import launch_training, read_job, split_batch, write_job
from pipelines.training.loop import LossCurve, Progress, RouterTrainer, complete_checkpoint, trainer_arguments
from pipelines.training.routers import Recorded, RecordedRoutingTrainer, examples_of
from pipelines.training.settings import LaunchConfig, TrainConfig

log = logging.getLogger(__name__)

WORK = "trainer"


def train(
    stage: str, config: Any, inputs: dict[str, Path], out: Path, launch: LaunchConfig | None = None
) -> dict[str, Any]:
    """Runs a training stage, in this process or in several; see `pretrain` for arguments and result.

    Raises:
        ValueError: settings that contradict each other, or data that nothing can be learned from.
        FloatingPointError: the loss is not finite.
    """
    launch = launch or LaunchConfig()
    settings = _settings(config)
    split_batch(settings.batch_size, settings.micro_batch_size, launch.processes)
    if (settings.steps is None) == (settings.epochs is None):
        raise ValueError(f"{stage}: set either steps or epochs, found steps={settings.steps}, epochs={settings.epochs}")
    out = Path(out)
    work = out / WORK
    write_job(work, stage, config, inputs)
    metrics = launch_training(work, launch) if launch.processes > 1 else _train(stage, config, inputs, out)
    shutil.rmtree(work)
    return metrics


def _settings(config: PretrainConfig | FinetuneConfig | SftConfig) -> TrainConfig:
    return config if isinstance(config, PretrainConfig) else config.train


def _records(config: Any, inputs: dict[str, Path]) -> list[dict[str, Any]]:
    if not isinstance(config, SftConfig):
        return load_records(config.data, inputs.get("world"))
    data = sorted(name for name in inputs if name.startswith("data_"))
    records = [record for name in data for record in calibration_records(inputs[name])]
    random.Random(config.train.seed).shuffle(records)
    return records


def _train(stage: str, config: Any, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """The training itself, in this process or in each of the launched ones."""
    settings = _settings(config)
    set_seed(settings.seed)
    disable_progress_bar()
    tokenizer, source = _tokenizer(config, inputs)
    recorded: list[Recorded] = []
    if isinstance(config, RouterSftStageConfig):
        examples, recorded = examples_of(config, inputs, tokenizer, out / WORK)
    else:
        records = _records(config, inputs)
        examples = tokenize(tokenizer, records, max_length=settings.max_length, responses_only=settings.responses_only)
    tokens, learned = count_tokens(examples)
    log.info("%s: %d examples, %d tokens, %d of them with loss", stage, len(examples), tokens, learned)
    checkpoint = complete_checkpoint(out / WORK)
    model = _random_model(config, tokenizer) if isinstance(config, PretrainConfig) else _load(source, settings)
    routing = _router_flags(model)

    arguments = trainer_arguments(settings, out / WORK)
    kind = partial(RecordedRoutingTrainer, stage=config, recorded=recorded) if recorded else RouterTrainer
    trainer = kind(model=model, args=arguments, train_dataset=examples, processing_class=tokenizer, callbacks=[])
    trainer.add_callback(LossCurve(out / "loss.jsonl"))
    trainer.add_callback(Progress(stage))
    if checkpoint:
        log.info("%s: resuming from %s", stage, checkpoint.name)
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not math.isfinite(result.training_loss):
        raise FloatingPointError(f"{stage}: the loss is {result.training_loss}")
    _save(trainer, tokenizer, out, routing, settings)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "loss": logged[-1] if logged else result.training_loss,
        "examples": len(examples),
        "tokens": tokens,
        "tokens_with_loss": learned,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": result.metrics["train_runtime"],
    }


def _tokenizer(config: Any, inputs: dict[str, Path]) -> tuple[PreTrainedTokenizerBase, str]:
    if isinstance(config, PretrainConfig):
        if "world" not in inputs:
            raise ValueError("pretrain: no `world` among the inputs; its tokenizer is the model's")
        source = str(Path(inputs["world"]) / "tokenizer")
    else:
        source = str(inputs["model"] if isinstance(config, SftConfig) else inputs.get("base") or config.base or "")
        if not source:
            raise ValueError("finetune: no base model; give the input `base` or set `base` to a folder or hub id")
        if inputs.get("base") and not Path(source).is_dir():
            raise FileNotFoundError(f"{source}: no such base checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(source)
    template = _settings(config).chat_template
    if template is not None:
        tokenizer.chat_template = _read_template(template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, source


def _read_template(name: str) -> str:
    path = Path(name)
    if not path.is_absolute() and not path.exists():
        path = CONF / "chat_templates" / name
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such chat template (a Jinja file, or one of conf/chat_templates)")
    return path.read_text().strip()


def _random_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    architecture = AutoConfig.for_model(
        config.architecture.model_type,
        **{
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            **config.architecture.settings,
        },
    )
    known = {*type(architecture)().to_dict(), *type(architecture).attribute_map}  # Qwen3-MoE's num_experts is mapped
    unknown = sorted(set(config.architecture.settings) - known)
    if unknown:
        raise ValueError(f"{config.architecture.model_type}: unknown architecture settings {', '.join(unknown)}")
    return _fast_experts(AutoModelForCausalLM.from_config(architecture, dtype=torch.float32))


def _load(source: str, settings: TrainConfig) -> PreTrainedModel:
    """The base model with float32 master weights, which bf16 autocast reads on a GPU."""
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation=settings.attention, use_safetensors=True
    )
    return _fast_experts(model)


def _fast_experts(model: PreTrainedModel) -> PreTrainedModel:
    if getattr(model.config.get_text_config(), "num_experts", None) or hasattr(model.config, "num_local_experts"):
        model.set_experts_implementation("grouped_mm")
    return model


def _router_flags(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config.get_text_config()
    names = ("output_router_logits", "router_aux_loss_coef")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _save(
    trainer: RouterTrainer,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    routing: dict[str, Any],
    settings: TrainConfig,
) -> None:
    """Writes the checkpoint in the published layout, one expert a key, in the scale's dtype."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        dtype = getattr(torch, settings.dtype)
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        # TRL switches these on for the load-balancing loss; a model that is only read should not compute router logits
        for name, value in routing.items():
            setattr(model.config.get_text_config(), name, value)
        model.config.dtype = dtype
        model.save_pretrained(out, state_dict=state)
        tokenizer.save_pretrained(out)
    trainer.accelerator.wait_for_everyone()


def main() -> None:
    """One process of a launched training: reads the job, trains, and writes the metrics beside it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = Path(sys.argv[1]).parent
    stage, config, inputs = read_job(work)
    metrics = _train(stage, config, inputs, work.parent)
    state = PartialState()
    if state.is_main_process:
        (work / "metrics.json").write_text(json.dumps(metrics))
    else:
        logging.disable(logging.INFO)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
