"""DeepSeek's own figures: what of them follows from shapes and from rates of other runs, and what does not.

No number of V3's bill enters what is computed here; it is read where the two are compared, and nowhere else.
"""

from __future__ import annotations

from pipeline.cost import flops, models, published
from pipeline.cost.bill import HOUR, TRILLION, Assumption, Claim, Part, gpu_hours
from pipeline.cost.published import Number
from pipeline.cost.shape import Shape

V3 = "v3-671b"
V2 = "v2-236b"
PROMISED = 0.10
"""How close the bill of DeepSeek-V3 is to come."""
DENSE_67B = "deepseek-ai/deepseek-llm-67b-base"


def v3_routes(each: flops.Flops) -> dict[str, float]:
    """GPU-hours a token by the other routes to V3's bill; see `published` for what they rest on."""
    v2 = a_token_of(V2)
    v2_rate = 3 * v2.total * TRILLION / (published.V2_HOURS.value * HOUR)
    slow = 1 - each.low_precision / each.total * (1 - 1 / published.FP8_SPEEDUP.value)
    pipelines = published.V3_GPUS.value / published.V3_PIPELINE.value
    micro_batches = published.V3_BATCH.value / pipelines
    step = (micro_batches + bubble(published.V3_PIPELINE.value)) * published.TRACE_SECONDS.value
    step += published.TRACE_OPTIMIZER.value
    return {
        "an older release of the same": 1 / published.OLDER_FP8.value / HOUR,
        "DeepSeek-V2's bill, its FP8 part twice as fast": gpu_hours(3 * each.total * slow, v2_rate),
        "DeepSeek's public trace (a floor: perfect routing, no traffic)": (
            step * published.V3_GPUS.value / HOUR / (published.V3_BATCH.value * 4096)
        ),
    }


def bubble(stages: float) -> float:
    """Idle time of DualPipe, in overlapped forward-and-backward units.

    (PP/2 - 1)(F&B + B - 3W) (DeepSeek-V3, Table 2), with F = W = 1, B = 2 and F&B = 3.
    """
    forward, weights, backward = 1, 1, 2
    both = forward + backward
    return (stages / 2 - 1) * (both + backward - 3 * weights) / both


def a_token_of(preset: str, length: int = 4096) -> flops.Flops:
    """Operations a token of a published model."""
    return flops.a_token(models.preset(preset), length)


def extension(shape: Shape, rate: float) -> tuple[float, float]:
    """GPU-hours of V3's two phases of context extension: at full speed, and with the pipeline that pre-training had.

    With 2,048 GPUs in pipelines of 16 stages, a pipeline has 15 and 3.75 micro-batches a step where pre-training had
    120, so the share that it idles is larger; how the phases were laid out is not published.
    """
    stages = published.V3_PIPELINE.value
    pipelines = published.V3_GPUS.value / stages
    usual = 1 + bubble(stages) / (published.V3_BATCH.value / pipelines)
    low = high = 0.0
    for steps, sequences, length in published.V3_EXTENSIONS:
        operations = 3 * flops.a_token(shape, length, mtp=True).total * steps * sequences * length
        hours = gpu_hours(operations, rate)
        low += hours
        high += hours * (1 + bubble(stages) / (sequences / pipelines)) / usual
    return low, high


def v3_parts(shape: Shape, rate: float, tokens: float, pretraining: Part) -> dict[str, Part]:
    low, high = extension(shape, rate)
    whole = tokens == published.V3_TOKENS
    compared = Number(published.V3_HOURS.value * tokens / TRILLION, published.V3_HOURS.what, published.V3_HOURS.source)
    bill = published.V3_PRETRAINING if whole else compared
    parts = {
        "pretraining": Part(pretraining.hours, pretraining.low, pretraining.high, pretraining.how, bill),
    }
    if whole:
        post = published.V3_POST_TRAINING
        told = "2 x 1,000 steps at 32K and 128K; high: idle pipelines"
        parts["context_extension"] = Part(low, low, high, told, published.V3_EXTENSION)
        parts["post_training"] = Part(post.value, post.value, post.value, "an input, as published: not derived", post)
    return parts


def v3_memory(shape: Shape, gpus: int) -> dict[str, float]:
    """Bytes a GPU with V3's own layout: PP16, EP64, ZeRO-1, DualPipe, which holds two stages."""
    stages, ranks = published.V3_PIPELINE.value, published.V3_EXPERT_RANKS
    parameters = shape.parameters
    experts = parameters.routed / (stages * ranks)
    others = (parameters.total - parameters.routed) / stages
    data = gpus / stages
    layers = shape.layers / stages
    return {
        "weights (BF16)": 2 * 2 * (experts + others),
        "gradients (FP32)": 2 * 4 * (experts + others),
        "optimizer (FP32 master, BF16 moments)": 8 * (experts / (data / ranks) + others / data),
        "activations": (stages + 1) * layers * 4096 * published.V3_LAYER_BYTES.value,
    }


def v3_assumptions(whole: bool) -> list[Assumption]:
    stages = published.V3_PIPELINE
    rest = [
        Assumption("context extension", "1,920 x 32K, 480 x 128K", f"{published.V3_PAPER}, section 4.3"),
        Assumption("post-training", "5K GPU-hours", published.V3_POST_TRAINING.source),
    ]
    apart = [Assumption("context extension, post-training", "not counted", "they belong to the run on 14.8T tokens")]
    return [
        Assumption(
            "pipeline bubble", "in the rate", f"as NVIDIA's run had it; own: {bubble(stages.value):.1f} F&B a step"
        ),
        Assumption("layout", "PP16, EP64, ZeRO-1", stages.source),
        Assumption("activations", "145 KB a token, layer", f"assumed from {published.V3_LAYER_BYTES.source}"),
        *(rest if whole else apart),
    ]


def _compared(what: str, printed: str, ours: float, number: Number, unit: float, letter: str) -> Claim:
    error = ours / number.value - 1
    status = f"within {PROMISED:.0%}" if abs(error) <= PROMISED else f"off by more than {PROMISED:.0%}"
    digits = 1 if letter == "K" else 3
    return Claim(what, printed, f"{ours / unit:.{digits}f}{letter} ({error:+.1%})", status, number.source)


def v3_claims(shape: Shape, parts: dict[str, Part], tokens: float, price: float) -> list[Claim]:
    """V3's bill beside what was computed, and R1's, which cannot be."""
    pretraining = parts["pretraining"]
    per_trillion = pretraining.hours / tokens * TRILLION
    claims = [_compared("V3, hours a trillion tokens", "180K", per_trillion, published.V3_HOURS, 1e3, "K")]
    if (extended := parts.get("context_extension")) is not None:
        total = sum(part.hours for part in parts.values())
        claims += [
            _compared("V3, pre-training", "2.664M", pretraining.hours, published.V3_PRETRAINING, 1e6, "M"),
            _compared("V3, in all", "2.788M", total, published.V3_TOTAL, 1e6, "M"),
            _compared("V3, in all, US dollars", "5.576M", total * price, published.V3_USD, 1e6, "M"),
        ]
        inside = extended.low <= published.V3_EXTENSION.value <= extended.high
        bracket, status = f"{extended.low / 1e3:.0f}K to {extended.high / 1e3:.0f}K", "bracket" if inside else "outside"
        claims.append(Claim("V3, context extension", "119K", bracket, status, published.V3_EXTENSION.source))
    low, high = r1_zero_explained(shape)
    explained = f"{low / 1e3:.0f}K to {high / 1e3:.0f}K explained: training, reference, rollouts"
    unknown = "not derived: its steps and lengths are not published"
    return [
        *claims,
        Claim("R1-Zero", "101K", explained, "as published", published.R1_ZERO_HOURS.source),
        Claim("R1", "41K", unknown, "as published", published.R1_HOURS.source),
    ]


def r1_zero_explained(shape: Shape) -> tuple[float, float]:
    """GPU-hours of R1-Zero that its throughput explains, low and high.

    Training is three forward passes and the reference one, at pre-training's rate; high: another one for old
    log-probabilities, at a fifth of the peak. Rollouts are at the speed of the published service. The rest may be the
    wait for the longest answers, whose lengths are not published.
    """
    length = published.R1_LENGTH.value
    tokens = published.R1_ROLLOUTS.value * length
    one = flops.a_token(shape, round(length)).total
    rollouts = tokens / published.R1_TOKENS_A_SECOND.value / HOUR
    fast = published.RATES["experts", "fp8"].middle
    low = gpu_hours(4 * one * tokens, fast) + rollouts
    high = gpu_hours(5 * one * tokens, published.R1_SLOW_SHARE.value * published.H100_PEAK) + rollouts
    return low, high


def v2_claims(hours: float | None = None) -> list[Claim]:
    """What DeepSeek-V2 published, most of it against DeepSeek 67B, beside what its shape gives.

    Args:
        hours: GPU-hours a token of V2 as planned, if they were; its own run was in BF16.
    """
    v2, dense = models.preset(V2), models.known(DENSE_67B)
    assert dense is not None
    elements = v2.kv_elements() / dense.kv_elements()
    saved = 1 - elements * published.V2_KV_BITS.value / 16
    low, high, alike = v2_cost_saved()
    room = _room(v2, published.V2_KV_BITS.value) / _room(dense, 16)
    bill = []
    if hours is not None:
        bill = [_compared("V2, hours a trillion tokens", "172.8K", hours * TRILLION, published.V2_HOURS, 1e3, "K")]
    return [
        *bill,
        Claim(
            "V2, KV cache against 67B",
            "-93.3%",
            f"{-saved:.1%} ({1 - elements:.1%} fewer numbers, of 6 bits instead of 16)",
            "exact" if round(saved, 3) == published.V2_KV_SAVED.value else "differs",
            f"{published.V2_KV_SAVED.source}; {published.V2_KV_BITS.source}",
        ),
        Claim(
            "V2, training against 67B",
            "-42.5%",
            f"-{low:.0%} to -{high:.0%} (-{alike:.0%} at the middle of both rates)",
            "bracket" if low <= published.V2_COST_SAVED.value <= high else "outside",
            published.V2_COST_SAVED.source,
        ),
        Claim(
            "V2, largest throughput against 67B",
            "5.76x",
            f"{room:.1f}x as many tokens of cache on 8 x 80 GB: an upper bound",
            "as published",
            published.V2_THROUGHPUT.source,
        ),
    ]


def v2_cost_saved() -> tuple[float, float, float]:
    """Share of GPU-hours that V2 saves against DeepSeek 67B: low and high with rates crossed, and with like ones."""
    dense = models.known(DENSE_67B)
    assert dense is not None
    ours, theirs = 3 * a_token_of(V2).total, 3 * flops.a_token(dense, 4096).total
    sparse, plain = published.RATES["experts", "bf16"], published.RATES["dense", "bf16"]
    slow, fast = ours / sparse.low, ours / sparse.high
    return (
        1 - slow / (theirs / plain.high),
        1 - fast / (theirs / plain.low),
        1 - (ours / sparse.middle) / (theirs / plain.middle),
    )


def _room(shape: Shape, bits: float) -> float:
    """Tokens whose cache fits on a node of eight 80 GB GPUs beside weights in BF16, or FP8 where the cache is small."""
    width = 1 if bits < 16 else 2
    free = 8 * 80e9 - width * shape.parameters.total
    return free / (shape.kv_elements() * bits / 8)
