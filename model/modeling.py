"""The DeepSeek-V3 model: transformers' forward pass over our layers, under the official tensor names.

    model.embed_tokens, model.layers.{i}.{self_attn,mlp,…}, model.norm, lm_head

`model.layers` holds `num_nextn_predict_layers` blocks more than `num_hidden_layers`: they predict further tokens (see
`model.mtp`), and the forward pass leaves them out.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as official

from model.attention import V3Attention
from model.balance_loss import Sequences
from model.config import V2Config, V3Config
from model.norm import V3RMSNorm
from model.routing import V3MoE, V3Router
from model.speculative import Speculation, generate


class V3DecoderLayer(official.DeepseekV3DecoderLayer):  # type: ignore[misc]
    """Attention and a feed-forward part: dense in the first `first_k_dense_replace` layers, experts in the others."""

    def __init__(self, config: V3Config, layer_idx: int) -> None:
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = V3Attention(config, layer_idx)
        dense = layer_idx < config.first_k_dense_replace
        self.mlp = official.DeepseekV3MLP(config) if dense else V3MoE(config)
        self.input_layernorm = V3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = V3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_BTD: Tensor, sequences: Sequences | None = None, **attention: Any) -> Tensor:
        """The block's output; `attention` are the arguments of its attention."""
        mixed_BTD, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_BTD), **attention)
        hidden_BTD = hidden_BTD + mixed_BTD
        normed_BTD = self.post_attention_layernorm(hidden_BTD)
        fed_BTD = self.mlp(normed_BTD, sequences) if isinstance(self.mlp, V3MoE) else self.mlp(normed_BTD)
        return hidden_BTD + fed_BTD  # type: ignore[no-any-return]


class V3MtpBlock(V3DecoderLayer):
    """A decoder layer that predicts a token further ahead, from what is known of a position and from a later token.

    It has no embedding and no head of its own: `embed_tokens` and `shared_head.head` in official checkpoints are copies
    of the decoder's, and are not read.
    """

    def __init__(self, config: V3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.enorm = V3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hnorm = V3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": V3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)})

    def forward(  # type: ignore[override]  # a block is given one thing more than a layer
        self, hidden_BTD: Tensor, embedded_BTD: Tensor, sequences: Sequences | None = None, **attention: Any
    ) -> Tensor:
        """What the head predicts from, and what the next block is given.

        Args:
            hidden_BTD: the decoder's output after its last norm, or the output of the block before this one.
            embedded_BTD: embedding of the later token.
            sequences, attention: see `V3DecoderLayer`.
        """
        joined_BTD = self.eh_proj(torch.cat([self.enorm(embedded_BTD), self.hnorm(hidden_BTD)], dim=-1))
        return self.shared_head["norm"](super().forward(joined_BTD, sequences, **attention))  # type: ignore[no-any-return]


class V3PreTrained(official.DeepseekV3PreTrainedModel):  # type: ignore[misc]
    """What transformers wants to know of our classes."""

    config_class = V3Config
    _no_split_modules: ClassVar[list[str]] = ["V3DecoderLayer"]  # FSDP wants each of them to be in the model

    def _tell_of_blocks(self) -> None:
        """What wrappers shard; that checkpoints may have more of them, and copies of embedding and head in them."""
        if self.config.num_nextn_predict_layers:
            self._no_split_modules = [*self._no_split_modules, "V3MtpBlock"]  # type: ignore[misc]
        depth = self.config.num_hidden_layers + self.config.num_nextn_predict_layers
        ours = "|".join(map(str, range(depth)))
        self._keys_to_ignore_on_load_unexpected = [
            rf"layers\.(?!(?:{ours})\.)\d+\.",
            r"layers\.\d+\.(?:embed_tokens|shared_head\.head)\.",
        ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, V3Router):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.e_score_correction_bias is not None:
                init.zeros_(module.e_score_correction_bias)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: transformers then reads and writes the official names of experts, as for its own class."""
        return False

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
        layers = [V3DecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        for block in range(config.num_nextn_predict_layers):
            layers.append(V3MtpBlock(config, config.num_hidden_layers + block))
        self.layers = nn.ModuleList(layers)
        self.norm = V3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = official.DeepseekV3RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self._tell_of_blocks()
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' forward pass; in training, the gates are told where sequences begin and what is padding."""
        if self.training and torch.is_grad_enabled():
            tokens = input_ids if inputs_embeds is None else inputs_embeds
            kwargs["sequences"] = Sequences.of(tokens, attention_mask, position_ids)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class DeepseekV3ForCausalLM(V3PreTrained, official.DeepseekV3ForCausalLM):  # type: ignore[misc]
    """The decoder with its head; exported as `model.V3ForCausalLM`.

    It bears the official name because `config.json` records it under `architectures`, where vLLM and transformers look.
    """

    def __init__(self, config: V3Config) -> None:
        official.DeepseekV3PreTrainedModel.__init__(self, config)
        self.model = V3Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.speculation = Speculation()
        self._tell_of_blocks()
        self.post_init()

    def generate(self, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """transformers' `generate`; with `use_mtp=True` the prediction blocks draft (see `model.speculative`).

        `speculation` tells what that brought, since the model was made.
        """
        return generate(self, super().generate, inputs, generation_config, **kwargs)


class DeepseekV2ForCausalLM(DeepseekV3ForCausalLM):
    """The same model with one of V2's gates; it bears the name of the class that computes them elsewhere."""

    config_class = V2Config


def model_class(model_type: str) -> type[DeepseekV3ForCausalLM]:
    """Our class for a config's `model_type`."""
    return DeepseekV2ForCausalLM if model_type == V2Config.model_type else DeepseekV3ForCausalLM


def is_ours(path: str, revision: str | None = None) -> bool:
    """Whether a folder's or a hub id's config is that of a DeepSeek-V3 or V2 model."""
    return _model_type(path, revision) in (V3Config.model_type, V2Config.model_type)


def load(path: str, revision: str | None = None, **options: Any) -> Any:
    """Load a causal language model: as our class if it is a DeepSeek-V3 or V2, as transformers' if not.

    Args:
        path: a folder, or a hub id.
        revision: branch, tag or commit on the hub.
        options: further arguments of `from_pretrained`.
    """
    ours = is_ours(path, revision)
    loader = model_class(_model_type(path, revision)) if ours else AutoModelForCausalLM
    return loader.from_pretrained(path, revision=revision, trust_remote_code=False, **options)


def _model_type(path: str, revision: str | None) -> str:
    return str(AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False).model_type)
