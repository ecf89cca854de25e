"""vLLM's method `mtp` on a checkpoint of ours: what it says, drafts and accepts is what we do, draft by draft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

from model import V3Config, V3ForCausalLM  # noqa: E402
from model.mtp import Objective  # noqa: E402
from pipeline.data.vocabulary import VocabularySpec, build  # noqa: E402
from pipeline.rollout import open_engine, sampling  # noqa: E402
from pipeline.schema.pieces import RolloutSpec, SpeculativeSpec  # noqa: E402
from tests.model.test_mtp import SHAPE  # noqa: E402

WORDS, LENGTH, STEPS = 30, 24, 60
PROMPTS = [[5, 6, 7], [9], [20, 22, 23, 24], [11, 12]]
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64, "enable_prefix_caching": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts up without end, now and then by two: its block has learnt to draft most of that."""
    tokenizer = build(VocabularySpec(kind="words"), [" ".join(f"w{n}" for n in range(WORDS))])
    first = len(tokenizer) - WORDS
    # vLLM's rotary embedding for the CPU is right with YaRN only; by a factor of one it changes nothing.
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 1.0, "original_max_position_embeddings": 64}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    dims = {"qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "max_position_embeddings": 64}
    shape = {**SHAPE, **ends, **dims, "vocab_size": len(tokenizer), "rope_parameters": {**yarn, "mscale_all_dim": 1.0}}
    torch.manual_seed(0)
    model = V3ForCausalLM(V3Config(**shape, num_nextn_predict_layers=1)).train()
    objective, optimizer = Objective(model), torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        steps = 1 + (torch.rand(8, LENGTH) < 0.15).long()
        ids = first + (torch.randint(WORDS, (8, 1)) + steps.cumsum(1)) % WORDS
        with objective.weighed(0.3, ids.numel()):
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    where = tmp_path_factory.mktemp("counting")
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.mark.parametrize("drafts", [1, 3])
def test_vllm_drafts_what_we_draft(folder: Path, drafts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MLA_DISABLE", "1")  # its kernels for latent attention want the published widths
    said, told = [], []
    for name, options in (("transformers", {}), ("vllm", ENGINE)):
        spec = RolloutSpec(
            engine=name,  # type: ignore[arg-type]
            max_tokens=40,
            temperature=0.0,
            engine_options=options,
            speculative=SpeculativeSpec(tokens=drafts),
        )
        engine = open_engine(spec, str(folder), seed=0, logprobs=name == "vllm")
        rollouts = [group[0] for group in engine.generate(PROMPTS, sampling(spec, 1, 0))]
        said.append([rollout.token_ids for rollout in rollouts])
        told.append(engine.speculation)  # type: ignore[attr-defined]
        engine.close()
    assert said[0] == said[1] and all(len(ids) == 40 for ids in said[0])
    ours, theirs = told
    assert 0.1 < ours.acceptance < 1
    assert (ours.rounds, ours.drafted) == (theirs.rounds, theirs.drafted)
    assert abs(ours.accepted - theirs.accepted) <= 1  # two drafts that are nearly as good may change places
    model = V3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt, rollout in zip(PROMPTS, rollouts, strict=True):
        ids = torch.tensor([[*prompt, *rollout.token_ids]])
        with torch.no_grad():
            logprobs_TV = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs_TV.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()
        assert rollout.logprobs == pytest.approx(expected, abs=1e-4)
