"""Training on TRL's trainers. A stage makes one and hands it to `fit`, which resumes, watches, saves and sums up.

| room | what it holds |
|---|---|
| `grpo` | the step of GRPO; start with `grpo.trainer` |
| `trainers` | TRL's other trainers, and the mixins that all share: exact resumption, multi-token prediction |
| `health` | non-finite numbers, alarms, and the way back to a checkpoint |
| `held_out` | the fields `watch`, `keep` and `stop`: scores while training |
| `parallel` | sharded weights, divided experts, and what processes tell each other |
"""
