"""Pipeline parallelism by `torch.distributed.pipelining`: the model is cut into stages, each process computes its own.

    pipeline = Pipeline(model, Schedule.DUALPIPEV, microbatches=8, rows=1, length=4096)   # on every rank
    optimizer = torch.optim.AdamW(pipeline.parameters())
    loss = pipeline.step(input_ids_BT, labels_BT)   # forward and backward
    optimizer.step()

    1F1B        one stage a rank, one forward and one backward in turn
    ZBV         two stages a rank, laid as a V; weight gradients fill the bubbles (arXiv 2401.10241, section 6)
    DualPipeV   two stages a rank, laid as a V; forward and backward of different micro-batches side by side: half of
                DeepSeek-V3's DualPipe (arXiv 2412.19437, section 3.2.1)

In a V the first rank holds the first and the last stage, so embedding and head lie together. torch computes the two
sides of DualPipeV one after the other; DeepSeek's overlap of all-to-all and products needs kernels of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.nn import functional as F
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from model import balance
from model.labels import IGNORED
from model.norm import V3RMSNorm


class Schedule(StrEnum):
    """In which order stages and micro-batches are computed; the values are torch's names."""

    ONE_F_ONE_B = "1F1B"
    ZBV = "ZBVZeroBubble"
    DUALPIPEV = "DualPipeV"


class Part(nn.Module):
    """A contiguous part of a model, under the whole model's names; it shares the model's modules.

    Args:
        model: a V3ForCausalLM.
        layers: which decoder layers.
    """

    def __init__(self, model: Any, layers: range) -> None:
        super().__init__()
        self.first, self.last = layers.start == 0, layers.stop == model.config.num_hidden_layers
        with torch.device("meta"):
            self.piece = type(model)(model.config)
        self.piece.train(model.training)
        decoder, whole = self.piece.model, model.model
        decoder.rotary_emb = whole.rotary_emb
        decoder.embed_tokens = whole.embed_tokens if self.first else PipelineIdentityLayer()
        for index in range(len(decoder.layers)):
            decoder.layers[index] = whole.layers[index] if index in layers else PipelineIdentityLayer()
        decoder.norm = whole.norm if self.last else PipelineIdentityLayer()
        self.piece.lm_head = model.lm_head if self.last else PipelineIdentityLayer()

    def forward(self, given: Tensor, **batch: Tensor) -> Tensor:
        """Token ids (first part) or hidden states -> hidden states or (last part) logits."""
        name = "input_ids" if self.first else "inputs_embeds"
        hidden_BTD = self.piece.model(**{name: given}, use_cache=False, **batch).last_hidden_state
        out: Tensor = self.piece.lm_head(hidden_BTD)
        return out


def split(layers: int, parts: int) -> list[range]:
    """Cut a number of layers into contiguous parts that differ by at most one layer; the last ones are the shorter.

    Raises:
        ValueError: there are fewer layers than parts.
    """
    if layers < parts:
        raise ValueError(f"{layers} layers cannot be cut into {parts} pipeline stages")
    size, longer = divmod(layers, parts)
    starts = [part * size + min(part, longer) for part in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


class Pipeline:
    """A model cut over the processes of a group. Every rank makes one, of the same model, and takes the same steps.

    Args:
        model: a V3ForCausalLM on this rank's device, of which this rank's parts are used. Its own precision is
            computed in; gradient checkpointing works with 1F1B alone, since the others split the backward pass.
        schedule: the order of work.
        microbatches: micro-batches a step; DualPipeV wants at least as many as there are stages (two a rank).
        rows: rows of a micro-batch.
        length: tokens of a row; every step has the same.
        group: the processes; all of them if not given.

    Raises:
        ValueError: fewer layers than stages, or a model whose stages would share more than hidden states: tied
            embeddings, or blocks that predict further tokens (they need embedding, head and last hidden state at once).
    """

    def __init__(
        self,
        model: Any,
        schedule: Schedule,
        microbatches: int,
        rows: int,
        length: int,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        config = model.config
        if config.tie_word_embeddings:
            raise ValueError("a pipeline needs an embedding and a head of their own: tie_word_embeddings is set")
        if config.num_nextn_predict_layers:
            raise ValueError("prediction blocks cannot be trained in a pipeline: set num_nextn_predict_layers to 0")
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        in_v = schedule is not Schedule.ONE_F_ONE_B
        count = ranks * (2 if in_v else 1)
        ranges = split(config.num_hidden_layers, count)
        own = [rank, count - 1 - rank] if in_v else [rank]
        for module in model.modules():
            if isinstance(module, V3RMSNorm):
                module.fused = not in_v
        self.parts = [Part(model, ranges[index]) for index in own]
        self.last_rank = 0 if in_v else ranks - 1
        self.batch = (microbatches * rows, length)
        self.group = group
        self.alone, _ = dist.new_subgroups(group_size=1)  # type: ignore[no-untyped-call]
        for gate in self._gates():
            gate.balance.scale = 1 / microbatches
        stages = [
            _stage(part, index, count, model, (rows, length), group)
            for part, index in zip(self.parts, own, strict=True)
        ]
        kind: Any = get_schedule_class(schedule)
        self.schedule = kind(stages if in_v else stages[0], microbatches, loss_fn=self._loss, scale_grads=False)
        self._tokens: Tensor | None = None

    def step(self, input_ids_BT: Tensor, labels_BT: Tensor, **batch: Tensor) -> Tensor:
        """Forward and backward over a batch; gradients are added to those that are there.

        Args:
            input_ids_BT: token ids, `microbatches * rows` times `length`; all ranks are given the same.
            labels_BT: labels as transformers takes them: token ids, or -100; shifted here.
            batch: further arguments of the decoder with the same first dimension, such as `attention_mask`.

        Returns:
            The mean loss of the tokens, on every rank; what a single process computes for the whole batch.

        Raises:
            ValueError: the batch has another shape than the pipeline was made for.
        """
        if input_ids_BT.shape != self.batch:
            raise ValueError(f"the pipeline was made for batches of {self.batch}, not {tuple(input_ids_BT.shape)}")
        first, last = (any(getattr(part, end) for part in self.parts) for end in ("first", "last"))
        losses: list[Tensor] = []
        self._tokens = (labels_BT[:, 1:] != IGNORED).sum()
        self.schedule.step(
            *([input_ids_BT] if first else []),
            target=labels_BT if last else None,
            losses=losses,
            return_outputs=False,
            **batch,
        )
        loss = torch.stack(losses).sum().detach() if last else torch.zeros((), device=input_ids_BT.device)
        dist.broadcast(loss, group=self.group, group_src=self.last_rank)
        return loss

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters, by the whole model's names."""
        for part in self.parts:
            yield from part.piece.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """This rank's parameters, for its optimizer."""
        for _, parameter in self.named_parameters():
            yield parameter

    def state_dict(self) -> Mapping[str, Tensor]:
        """This rank's share of the model's state, for `torch.distributed.checkpoint`, which joins the ranks' shares."""
        return {name: tensor for part in self.parts for name, tensor in part.piece.state_dict().items()}

    def update_bias(self, speed: float = balance.BIAS_UPDATE_SPEED) -> Mapping[str, Tensor]:
        """Move the selection biases of this rank's gates (see `model.balance`); a gate's whole load is on its rank."""
        loads: dict[str, Tensor] = {}
        for part in self.parts:
            loads |= balance.update_bias(part, speed, group=self.alone)
        return loads

    def _loss(self, logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
        """A micro-batch's share of the mean over all tokens of the batch."""
        assert self._tokens is not None
        logits, labels = logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten()
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / self._tokens

    def _gates(self) -> Iterator[Any]:
        for part in self.parts:
            yield from balance.routers(part).values()


class _Stage(PipelineStage):
    """A stage that opens connections to other processes alone."""

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        """torch 2.11 sends a greeting to the stage before and behind, even to one of this process: gloo cannot."""
        return [op for op in super()._get_init_p2p_neighbors_ops() if op.group_peer != self.group_rank]


def _stage(
    part: Part, index: int, count: int, model: Any, shape: tuple[int, int], group: dist.ProcessGroup | None
) -> PipelineStage:
    """A stage that knows its shapes: torch would else find them by a pass whose tokens the gates would count."""
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    ids = torch.empty(shape, dtype=torch.long, device="meta")
    hidden = torch.empty(*shape, model.config.hidden_size, dtype=dtype, device="meta", requires_grad=True)
    logits = torch.empty(*shape, model.config.vocab_size, dtype=dtype, device="meta", requires_grad=True)
    return _Stage(
        part,
        index,
        count,
        device,
        input_args=(ids if part.first else hidden,),
        output_args=(logits if part.last else hidden,),
        group=group,
    )
