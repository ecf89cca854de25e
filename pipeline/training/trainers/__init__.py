"""TRL's trainers, and the mixins that all of them share. GRPO's is in `pipeline.training.grpo`."""
