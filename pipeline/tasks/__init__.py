"""Tasks: problems, prompts and graders, shared by training, sampling and evaluation. `base` is the protocol."""
