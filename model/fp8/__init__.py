"""FP8 as DeepSeek-V3 was trained and is published in (arXiv 2412.19437, section 3.3): block-wise scales, E4M3.

    >>> from model import fp8
    >>> fp8.fp8_training(model, backend="reference")
    >>> fp8.write(Path("model"), Path("model-fp8"))

`quantise` is the arithmetic, `linear` and `experts` train with it, `checkpoint` reads and writes the official format.
"""

from model.fp8.checkpoint import is_fp8, read, write
from model.fp8.quantise import BLOCK, dequantise, in_fp8, quantise
from model.fp8.training import fp8_training, usable_backend

__all__ = ["BLOCK", "dequantise", "fp8_training", "in_fp8", "is_fp8", "quantise", "read", "usable_backend", "write"]
