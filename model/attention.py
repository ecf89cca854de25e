"""Multi-head latent attention (MLA): keys and values are kept as one small latent a token (DeepSeek-V2, section 2.1).

The cache holds, per token, the normed latent c_KV (`kv_lora_rank` wide) and the rotated key k_R that all heads share
(`qk_rope_head_dim` wide). A head's key and value are linear in c_KV:

    k = [W_UK c, k_R]      v = W_UV c

*Expanded*, as transformers has it: k and v are computed for the whole context, then any attention kernel runs. Right
for training and prefill. *Absorbed*: q·(W_UK c) = (W_UK' q)·c and Σ p (W_UV c) = W_UV (Σ p c), so W_UK folds into the
query and W_UV into the output, and attention reads the cache as it lies, one key and value for all heads. Right for the
few queries of a decoding step, where expanding the context would be nearly all the work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as official

from model.norm import KernelRMSNorm


class V3Attention(official.DeepseekV3Attention):  # type: ignore[misc]
    """MLA with transformers' parameters, kernels and caches, and an absorbed form for decoding."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        for name, norm in list(self.named_children()):
            if isinstance(norm, official.DeepseekV3RMSNorm):
                self.add_module(name, KernelRMSNorm(norm.weight.numel(), norm.variance_epsilon))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to the context and add these tokens to the cache.

        Args:
            hidden_states: [batch, tokens, hidden].
            position_embeddings: cosine and sine, each [batch, tokens, qk_rope_head_dim].
            attention_mask: what transformers' mask for `config._attn_implementation` is.
            past_key_values: the cache; without one, the tokens see only each other.
            kwargs: for the attention kernel of the expanded form.

        Returns:
            The output, [batch, tokens, hidden], and the attention weights where the form computes them.
        """
        if past_key_values is not None and self._absorbs(hidden_states.shape[1], attention_mask, past_key_values):
            return self._absorbed(hidden_states, position_embeddings, attention_mask, past_key_values)
        output: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
            hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
        )
        return output

    def _absorbs(self, queries: int, mask: torch.Tensor | None, cache: Cache) -> bool:
        """Whether the absorbed form takes fewer multiplications and can do what is asked for.

        With T queries, S tokens of context, latent rank r and head widths n (key without rotation), v (value), and p
        (rotation), a head multiplies

            expanded:  S r (n + v) + T S (n + p + v)          absorbed:  T r (n + v) + T S (2 r + p)

        For DeepSeek-V3 absorbing pays below about 170 queries, whatever the context, and never in a prefill.
        """
        plain = type(self.kv_b_proj) is nn.Linear and self.kv_b_proj.weight.device.type != "meta"
        drops = self.training and self.attention_dropout > 0
        explicit = (isinstance(mask, torch.Tensor) and mask.dim() == 4) or (mask is None and queries == 1)
        if not plain or drops or not explicit:  # adapters, quantised or offloaded weights; kernels' own masks
            return False
        context, _ = cache.get_mask_sizes(queries, self.layer_idx)
        heads = self.qk_nope_head_dim + self.v_head_dim
        expanded = context * self.kv_lora_rank * heads + queries * context * (heads + self.qk_rope_head_dim)
        absorbed = queries * self.kv_lora_rank * heads
        absorbed += queries * context * (2 * self.kv_lora_rank + self.qk_rope_head_dim)
        return bool(absorbed < expanded)

    def _absorbed(
        self,
        hidden_BTD: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: Cache,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, queries, _ = hidden_BTD.shape
        q_nope_BHTN, q_rot_BHTP, latent_B1TR, k_rot_B1TP = self._project(hidden_BTD, position_embeddings)
        latent_B1SR, k_rot_B1SP = cache.update(latent_B1TR, k_rot_B1TP, self.layer_idx)
        latent_BSR, k_rot_BSP = latent_B1SR.squeeze(1), k_rot_B1SP.squeeze(1)

        up_HMR = self.kv_b_proj.weight.view(self.num_heads, -1, self.kv_lora_rank)
        up_k_HNR, up_v_HVR = up_HMR.split([self.qk_nope_head_dim, self.v_head_dim], dim=1)
        q_BHTR = torch.einsum("bhtn,hnr->bhtr", q_nope_BHTN * self.scaling, up_k_HNR)

        # All heads share one key, so heads and queries are rows of one matrix.
        rows = (batch, self.num_heads * queries, -1)
        scores = torch.bmm((q_rot_BHTP * self.scaling).reshape(rows), k_rot_BSP.transpose(1, 2))
        scores = torch.baddbmm(scores, q_BHTR.reshape(rows), latent_BSR.transpose(1, 2))
        scores_BHTS = scores.view(batch, self.num_heads, queries, -1)
        if mask is not None:
            # Finite, because padding sees nothing at all, and NaN in its place would reach the other tokens' values.
            hidden = torch.finfo(scores.dtype).min
            scores_BHTS = scores_BHTS.masked_fill(~mask, hidden) if mask.dtype == torch.bool else scores_BHTS + mask
        weights_BHTS = scores_BHTS.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
        read_BHTR = torch.bmm(weights_BHTS.view(rows[0], rows[1], -1), latent_BSR).view_as(q_BHTR)
        values_BTHV = torch.einsum("bhtr,hvr->bthv", read_BHTR, up_v_HVR)
        return self.o_proj(values_BTHV.reshape(batch, queries, -1)), weights_BHTS

    def _project(
        self, hidden_BTD: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """A head's queries without and with rotation, and what the cache keeps: the latent and the shared key."""
        batch, queries, _ = hidden_BTD.shape
        if self.q_proj is not None:
            q_BTQ = self.q_proj(hidden_BTD)
        else:
            q_BTQ = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_BTD)))
        q_BHTQ = q_BTQ.view(batch, queries, self.num_heads, self.qk_head_dim).transpose(1, 2)
        q_nope_BHTN, q_rot_BHTP = q_BHTQ.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        latent_B1TR, k_rot_B1TP = (
            self.kv_a_proj_with_mqa(hidden_BTD).unsqueeze(1).split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        )
        interleaved = self.config.rope_interleave
        rotate = official.apply_rotary_pos_emb_interleave if interleaved else official.apply_rotary_pos_emb
        q_rot_BHTP, k_rot_B1TP = rotate(q_rot_BHTP, k_rot_B1TP, *position_embeddings)
        return q_nope_BHTN, q_rot_BHTP, self.kv_a_layernorm(latent_B1TR), k_rot_B1TP
