"""The DeepSeek-V3 model: transformers' forward pass over our layers, under the official tensor names.

    model.embed_tokens, model.layers.{i}.{self_attn,mlp,…}, model.norm, lm_head

`model.layers` may hold more than `num_hidden_layers` blocks: those that follow predict further tokens, and the
forward pass leaves them out.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as official

from model.attention import V3Attention
from model.config import V3Config
from model.routing import V3MoE


class V3DecoderLayer(official.DeepseekV3DecoderLayer):  # type: ignore[misc]
    """Attention and a feed-forward part: dense in the first `first_k_dense_replace` layers, experts in the others."""

    def __init__(self, config: V3Config, layer_idx: int) -> None:
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = V3Attention(config, layer_idx)
        dense = layer_idx < config.first_k_dense_replace
        self.mlp = official.DeepseekV3MLP(config) if dense else V3MoE(config)
        self.input_layernorm = official.DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = official.DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class V3PreTrained(official.DeepseekV3PreTrainedModel):  # type: ignore[misc]
    """What transformers wants to know of our classes."""

    config_class = V3Config
    _no_split_modules: ClassVar[list[str]] = ["V3DecoderLayer"]

    @classmethod
    def _can_set_experts_implementation(cls) -> Any:
        return True  # transformers looks for its decorator in the source of this module, and would not find it


class V3Model(V3PreTrained, official.DeepseekV3Model):  # type: ignore[misc]
    """The decoder without its head."""

    def __init__(self, config: V3Config) -> None:
        official.DeepseekV3PreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([V3DecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = official.DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = official.DeepseekV3RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class DeepseekV3ForCausalLM(V3PreTrained, official.DeepseekV3ForCausalLM):  # type: ignore[misc]
    """The decoder with its head; exported as `model.V3ForCausalLM`.

    It bears the official name because `config.json` records it under `architectures`, where vLLM and transformers look.
    """

    def __init__(self, config: V3Config) -> None:
        official.DeepseekV3PreTrainedModel.__init__(self, config)
        self.model = V3Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
