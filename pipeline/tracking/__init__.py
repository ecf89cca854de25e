"""Mirrors the events of a run to trackers: wandb, trackio, TensorBoard, MLflow.

Stages know nothing of it. They write events, and beside the runner stands a process for each tracker that reads them
(`mirror`) and passes on what the tracker has not had yet (`trackers`). The runner starts and ends these processes
(`mirrors`). So neither ranks nor restarts log a step twice, and no tracker can hold up or stop a stage.
"""
