"""What a model costs, as arithmetic: shape -> parameters, FLOPs, bytes, seconds, money. No tensor is ever made.

    shape.py       the widths of a decoder: parameters by part, LoRA's included
    config.py      the shape of a decoder, from a Hugging Face config
    flops.py       multiply-adds of a forward pass by part, of training, and of a GRPO step
    memory.py      bytes by part: weights, gradients, optimizer, adapter, activations, KV cache, engine
    speed.py       seconds of what a stage does, from efficiencies measured on an H200
    hardware.py    GPUs: peaks, memory, bandwidth, price, each with its source
    models.py      shapes of models on the hub, so that planning needs no network
    published.py   what others measured and published, each with its source
    programme.py   the bill of a whole pre-training (`zero2r1 cost`); bill.py is what one is made of
    deepseek.py    DeepSeek's own figures, beside what follows from shapes

`flops` is what model FLOPs utilisation wants, `memory` what says whether a recipe fits a GPU:

    >>> from pipeline.cost import flops, memory, models
    >>> model = models.known("Qwen/Qwen2.5-7B")
    >>> model.parameters.total
    7615616512
    >>> flops.training(model, [1024] * 8).total            # of eight sequences, forward and backward
    >>> memory.training(model, memory.Setup(tokens=8192, adapter_rank=32, base="nf4"))
"""
