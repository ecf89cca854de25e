"""Trainer fields that stages own. Imported with the stages' configs, so nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping

KEEP_CHECKPOINTS = 2
"""The newest one may be incomplete when the process dies; then the one before it counts."""

NO_EVALUATION = "a training stage has no evaluation data; score its model with a stage of kind evaluate"
FOLLOW_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
"""Learning rate schedules of transformers that want an `eval_strategy`."""

RESERVED: Mapping[str, str] = {
    "output_dir": "a stage works in its own scratch folder",
    "seed": "set the stage's `seed`",
    "data_seed": "set the stage's `seed`",
    "do_train": "a training stage trains",
    "resume_from_checkpoint": "an interrupted stage resumes by itself",
    "ignore_data_skip": "a resumed stage would see rows twice",
    "save_strategy": "set save_steps; a stage cannot resume without checkpoints",
    "save_total_limit": f"the newest {KEEP_CHECKPOINTS} are kept, until the stage is published",
    "save_only_model": "a stage cannot resume without its optimizer",
    "eval_strategy": NO_EVALUATION,
    "eval_on_start": NO_EVALUATION,
    "load_best_model_at_end": "the model after the last step is published; evaluate other ones as stages of their own",
    "push_to_hub": "use a stage of kind export, and upload its folder",
    "disable_tqdm": "progress is shown by `zero2r1 run`",
    "trust_remote_code": "models run with the installed code only",
}
"""Trainer fields that no training stage leaves to the recipe -> why."""
