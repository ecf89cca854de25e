"""What others measured and published. Each number stands beside its source; none is derived, and none is fitted.

Rates are model FLOPs a second and GPU as `flops` counts them (causal scores, recomputation not counted).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

V2_PAPER = "DeepSeek-V2, arXiv 2405.04434"
V3_PAPER = "DeepSeek-V3, arXiv 2412.19437"
ISCA_PAPER = "DeepSeek at ISCA, arXiv 2505.09343"
R1_PAPER = "DeepSeek-R1, Nature s41586-025-09422-z"
MEGATRON_PAPER = "NVIDIA Megatron-Core MoE, arXiv 2603.07685"


@dataclass(frozen=True, slots=True)
class Number:
    """A published number.

    Attributes:
        value: in the unit that its use says.
        what: the run that it was measured on, or what it stands for.
        source: where it is printed.
    """

    value: float
    what: str
    source: str


@dataclass(frozen=True, slots=True)
class Rate:
    """Model FLOPs a second and GPU, low and high, of pre-training runs on H100s or H800s (989 TFLOPS in BF16)."""

    low: float
    high: float
    what: str
    source: str

    @property
    def middle(self) -> float:
        """What is planned with."""
        return (self.low + self.high) / 2


H100_PEAK = 989e12
RATES: Mapping[tuple[str, str], Rate] = {
    ("experts", "fp8"): Rate(
        368e12,
        368e12,
        "DeepSeek-V3's shape on 1,024 H100, FP8 in blocks of 128",
        f"{MEGATRON_PAPER}, Table 11 (quoted second-hand)",
    ),
    ("experts", "bf16"): Rate(245e12, 276e12, "Qwen3-235B-A22B on H100, BF16", "NVIDIA Megatron MoE model zoo"),
    ("dense", "bf16"): Rate(
        0.38 * H100_PEAK, 0.43 * H100_PEAK, "Llama 3 405B on 8,192-16,384 H100", "arXiv 2407.21783, Table 4"
    ),
}
"""(feed-forward part, precision) -> what is planned with: the newest measurement by others of that kind of model."""

OLDER_FP8 = Number(1297, "the same by an older release, tokens a second and GPU", "NVIDIA Megatron Bridge 25.09")
V2_HOURS = Number(
    172_800, "DeepSeek-V2's pre-training on H800, BF16, GPU-hours a trillion tokens", f"{V2_PAPER}, section 3.2.3"
)
DENSE_67B_HOURS = Number(300_600, "DeepSeek 67B, GPU-hours a trillion tokens", f"{V2_PAPER}, section 3.2.3")
TRACE_SECONDS = Number(
    0.129, "a forward and a backward of 4 MoE layers, overlapped", "DeepSeek's public trace (profile-data, train.json)"
)
TRACE_OPTIMIZER = Number(0.29, "seconds of a step's optimizer", f"{ISCA_PAPER}, Table 4")
FP8_SPEEDUP = Number(2.0, "FP8 products against BF16", "NVIDIA's data sheet (1,979 against 989 TFLOPS)")

V3_HOURS = Number(180_000, "pre-training, H800-hours a trillion tokens", f"{V3_PAPER}, Table 1 and section 1")
V3_PRETRAINING = Number(2_664_000, "pre-training on 14.8T tokens, H800-hours", f"{V3_PAPER}, Table 1")
V3_EXTENSION = Number(119_000, "context extension, H800-hours", f"{V3_PAPER}, Table 1")
V3_POST_TRAINING = Number(5_000, "post-training, H800-hours", f"{V3_PAPER}, Table 1")
V3_TOTAL = Number(2_788_000, "in all, H800-hours", f"{V3_PAPER}, Table 1")
V3_USD = Number(5_576_000, "in all, US dollars", f"{V3_PAPER}, Table 1")
V3_TOKENS = 14.8e12
V3_BATCH = Number(15_360, "sequences of 4,096 tokens a step", f"{V3_PAPER}, section 4.2")
V3_GPUS = Number(2048, "H800 of the run", f"{V3_PAPER}, section 3.1")
V3_EXTENSIONS = ((1000, 1920, 32_768), (1000, 480, 131_072))
"""(steps, sequences a step, tokens a sequence) of the two phases (DeepSeek-V3, section 4.3)."""
V3_PIPELINE = Number(
    16, "stages of the pipeline (PP16), experts over 64 GPUs (EP64), ZeRO-1", f"{V3_PAPER}, section 3.2"
)
V3_EXPERT_RANKS = 64
V3_LAYER_BYTES = Number(
    145e3,
    "bytes a token that an MoE layer keeps, norms and MLA's up-projections recomputed",
    f"{V3_PAPER}, section 3.3.3",
)

V2_KV_BITS = Number(6, "bits a number of V2's cache", f"{V2_PAPER}, section 3.2.3")
V2_KV_SAVED = Number(0.933, "V2's KV cache against DeepSeek 67B's, saved", f"{V2_PAPER}, abstract")
V2_COST_SAVED = Number(0.425, "V2's training against DeepSeek 67B's, saved", f"{V2_PAPER}, abstract")
V2_THROUGHPUT = Number(
    5.76, "V2's largest throughput of generation against DeepSeek 67B's, times", f"{V2_PAPER}, abstract"
)

R1_ZERO_HOURS = Number(101_000, "R1-Zero: 512 H800 for 198 hours", f"{R1_PAPER}, supplement")
R1_HOURS = Number(41_000, "R1: 512 H800 for 80 hours", f"{R1_PAPER}, supplement")
R1_ROLLOUTS = Number(5.3e6, "responses: 10,400 steps of 512", f"{R1_PAPER}, methods")
R1_LENGTH = Number(6500, "tokens a response over the run, read off a figure", f"{R1_PAPER}, figure 1b")
R1_TOKENS_A_SECOND = Number(1850, "tokens a second and GPU of the service's decoding", "DeepSeek's inference overview")
R1_SLOW_SHARE = Number(0.20, "of the peak, where passes of RL are less full than in pre-training", "assumed")
