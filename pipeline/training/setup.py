"""What the training stages share: quiet libraries, the tokenizer, and the arguments of TRL's config classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.context import StageContext
from pipeline.data.examples import Account
from pipeline.prompts.rendering import Renderer
from pipeline.rollout.context_limit import context_of
from pipeline.schema.pieces import Precision, PromptedConfig
from pipeline.schema.reserved import TRAINER_FILES, low_precision
from pipeline.training import adapters
from pipeline.training.parallel import sharding
from rewards.registry import located

log = logging.getLogger(__name__)

RANK_SECONDS = 7200
"""How long a rank waits in a collective: longer than another one samples a tail of long completions. Ranks that all
stand still are ended by the runner much earlier (`launch.stall`)."""


def prepare() -> None:
    """Silence what libraries print and send by themselves; call before they are used."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    from transformers.utils import logging as hf_logging

    datasets.disable_progress_bars()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_warning()


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model, padded on the left as generation wants it.

    Raises:
        ValueError: it has no end-of-sequence token, so nothing trained with it could learn to stop.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {path} has no end-of-sequence token; import the model with a chat_template")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def renderer(path: str, tokenizer: Any, config: PromptedConfig) -> Renderer:
    """How a stage renders chats for the model that it trains; the model's tokenizer will carry that along.

    Args:
        path: folder or hub id of the model, whose generation config names tokens that end a turn.
        tokenizer: the model's, which is saved with it.
        config: the stage's config.
    """
    from transformers import GenerationConfig

    try:
        stops = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        stops = None
    ids = [stops] if isinstance(stops, int) else stops or []
    made = Renderer(tokenizer, config.template_kwargs, config.prefill, tokenizer.convert_ids_to_tokens(ids))
    made.carry()
    return made


def arguments(
    config_class: type[Any],
    context: StageContext[Any],
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> Any:
    """Build a TRL config: ours beneath, the recipe's `trainer:` above, and on top what the stage decides.

    Args:
        config_class: TRL's config class.
        context: the stage; its config has `trainer`.
        defaults: our defaults for this kind of stage, which the recipe may replace.
        fixed: fields that follow from the rest of the stage's config.
    """
    adapted = getattr(context.config, "adapter", None) is not None  # what is not trained may be of any type
    if not adapted and (fault := low_precision(context.config.trainer, sharding.keeps_masters())) is not None:
        raise ValueError(f"trainer.model_init_kwargs: {fault}")
    on_cpu = not torch.cuda.is_available()
    general = {
        "bf16": not on_cpu,
        "gradient_checkpointing": not on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "report_to": "none",
        "ddp_timeout": RANK_SECONDS,
        **sharding.accumulation(),
    }
    owned = {
        "output_dir": str(context.checkpoints),
        "seed": context.seed,
        "data_seed": context.seed,
        "save_strategy": "steps",
        "save_total_limit": None,  # `checkpoints.rotate` deletes the old ones, and only once the new one is safe
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "logging_nan_inf_filter": False,  # it shows the mean of earlier losses in place of one that is not finite
    }
    given = dict(context.config.trainer)
    for name in TRAINER_FILES:
        if isinstance(given.get(name), str):
            given[name] = str(located(given[name], context.base).resolve())
    beneath = {**general, **adapters.defaults(context.config, config_class, defaults)}
    if "lr_scheduler_type" in given:  # another schedule takes other arguments
        beneath.pop("lr_scheduler_kwargs", None)
    args = config_class(**{**beneath, **given, **owned, **fixed})
    if not (args.deepspeed or sharding.launched_by_deepspeed()):  # a launcher's own setting would go past every check
        args.mixed_precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    args.fsdp_plugin_args = sharding.plugin_arguments(args)
    if adapted:
        adapters.load_frozen(args)
    return args


def set_precision(model: Any, precision: Precision) -> None:
    """Let a trainer's model multiply in FP8 if the stage says so; call it before training begins.

    Raises:
        RuntimeError: there is a GPU, but FP8 cannot be used on it.
        ValueError: the model's experts do not divide into FP8 blocks.
    """
    if precision == "fp8":
        from model import fp8

        converted = fp8.fp8_training(model, fp8.usable_backend())
        log.info("%d modules multiply in FP8", len(converted))


def context_length(path: str) -> int:
    """The longest sequence that a model reads, in tokens; see `context_of`.

    Raises:
        ValueError: its config does not say.
    """
    if (found := context_of(path)) is None:
        raise ValueError(f"the config of {path} does not say how many tokens the model reads: set max_length")
    return found


def warn_if_dropped(context: StageContext[Any], args: Any, account: Account, max_length: int) -> None:
    """Say so, in the terminal as well, where examples were left out for their length."""
    if account.too_long and args.process_index == 0:
        context.note(
            f"{account.too_long} of {account.too_long + account.examples} examples are longer than"
            f" max_length={max_length} and are left out; the longest has {account.longest} tokens"
        )
