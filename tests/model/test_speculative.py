"""Self-speculative decoding: exact in greedy, exact in distribution, and its caches exact after every rejection."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from model import V3ForCausalLM, speculative
from model.mtp import Objective, blocks
from tests.model.test_mtp import make

END, PAD, WORDS = 1, 0, 21
TRAINING_STEPS = 60


def sentence(generator: torch.Generator) -> list[int]:
    """Counts up in steps of one, now and then of two, from anywhere, and ends somewhere: mostly foreseeable."""
    length = int(torch.randint(6, 20, (), generator=generator))
    steps = 1 + (torch.rand(length, generator=generator) < 0.15).long()
    start = torch.randint(WORDS, (), generator=generator)
    return [*(2 + (start + steps.cumsum(0)) % WORDS).tolist(), END]


@pytest.fixture(scope="module", params=[1, 2])
def trained(request: pytest.FixtureRequest) -> V3ForCausalLM:
    """A tiny model whose blocks have learnt to draft."""
    model, generator = make(request.param), torch.Generator().manual_seed(0)
    objective, optimizer = Objective(model.train()), torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(TRAINING_STEPS):
        rows = [torch.tensor(sentence(generator)) for _ in range(8)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        labels = ids.masked_fill(ids == PAD, -100)
        with objective.weighed(0.3, (labels != -100).sum()):
            model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def prompts(count: int, seed: int) -> dict[str, Tensor]:
    """Left-padded beginnings of one to nine tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = [sentence(generator)[: 1 + n % 9][:-1] or [7] for n in range(count)]
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_greedy_output_is_that_of_plain_greedy(trained: V3ForCausalLM, drafts: int) -> None:
    trained.speculation = speculative.Speculation()
    for seed, tokens in ((1, 1), (2, 2), (3, 30)):
        batch = prompts(16, seed)
        plain = trained.generate(**batch, max_new_tokens=tokens, do_sample=False)
        ours = trained.generate(
            **batch, max_new_tokens=tokens, do_sample=False, use_mtp=True, num_assistant_tokens=drafts
        )
        assert ours.tolist() == plain.tolist()
    told = trained.speculation
    assert 0.2 < told.acceptance < 1  # drafts were both kept and rejected
    assert told.drafted == drafts * told.rounds


def test_long_runs_stay_exact_without_an_end(trained: V3ForCausalLM) -> None:
    batch, settings = prompts(3, 4), {"max_new_tokens": 70, "do_sample": False, "eos_token_id": None}
    plain = trained.generate(**batch, **settings)
    assert trained.generate(**batch, **settings, use_mtp=True, num_assistant_tokens=3).tolist() == plain.tolist()


def test_rows_are_alone_what_they_are_in_a_batch(trained: V3ForCausalLM) -> None:
    batch, settings = prompts(6, 5), {"max_new_tokens": 30, "do_sample": False, "use_mtp": True}
    together = trained.generate(**batch, **settings)
    for row, ids, mask in zip(together, batch["input_ids"], batch["attention_mask"], strict=True):
        alone = trained.generate(input_ids=ids[mask.bool()][None], **settings)[0].tolist()
        assert row[mask.argmax() :].tolist()[: len(alone)] == alone


def drafted_without_cache(model: V3ForCausalLM, settled: list[int], drafts: int) -> list[int]:
    """What the blocks draft behind these tokens, everything computed anew."""
    parts, ids = blocks(model), list(settled)
    given = hidden = model.model(input_ids=torch.tensor([ids[:-1]])).last_hidden_state
    for step in range(1, drafts + 1):
        block = parts[min(step, len(parts)) - 1]
        ahead = min(step, len(parts))
        # Past the last block, that one goes on alone, from its own output.
        given = torch.cat([given, hidden[:, -1:]], 1) if step > len(parts) else hidden
        embedded = model.model.embed_tokens(torch.tensor([ids[ahead : ahead + given.shape[1]]]))
        positions = torch.arange(given.shape[1])[None]
        hidden = block(
            given,
            embedded,
            attention_mask=torch.full((given.shape[1],) * 2, torch.finfo().min).triu(1)[None, None],
            position_ids=positions,
            position_embeddings=model.model.rotary_emb(given, position_ids=positions),
        )
        ids.append(int(model.lm_head(hidden[0, -1]).argmax()))
    return ids[len(settled) :]


@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_drafts_are_those_of_blocks_without_a_cache(
    trained: V3ForCausalLM, drafts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale cache would show in acceptance alone: whatever is drafted, what comes out is right."""
    seen = 0

    class Checked(speculative._Loop):
        def _draft(self, *args: Any) -> Any:
            nonlocal seen
            settled = [ids[:known].tolist() for ids, known in zip(self.batch.ids_BS, self.batch.known_B, strict=True)]
            made = super()._draft(*args)
            for ids, row in zip(settled, made[0].tolist(), strict=True):
                assert row == drafted_without_cache(trained, ids, drafts)
                seen += 1
            return made

    monkeypatch.setattr(speculative, "_Loop", Checked)
    trained.generate(**prompts(9, 6), max_new_tokens=14, do_sample=False, use_mtp=True, num_assistant_tokens=drafts)
    assert seen > 20


def warped(scores: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities after temperature and nucleus: the smallest set of best tokens with `top_p` of the mass."""
    p, order = (scores / temperature).softmax(-1).sort(descending=True)
    p = p * ((p.cumsum(0) - p) < top_p)
    return torch.zeros_like(p).scatter(0, order, p / p.sum())


def continuations(
    model: V3ForCausalLM, ids: list[int], left: int, **warp: float
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every continuation of up to `left` tokens with its probability."""
    p = warped(model(torch.tensor([ids])).logits[0, -1], **warp)
    for token in p.nonzero()[:, 0].tolist():
        if token == END or left == 1:
            yield (token,), float(p[token])
        else:
            for rest, share in continuations(model, [*ids, token], left - 1, **warp):
                yield (token, *rest), float(p[token]) * share


@torch.no_grad()
def test_samples_have_the_distribution_of_plain_sampling(trained: V3ForCausalLM) -> None:
    """Three tokens, of which drafts are kept, replaced and cut off; exact probabilities by enumeration."""
    warp, count, prompt = {"temperature": 1.6, "top_p": 0.9}, 5000, [9, 10]
    exact = dict(continuations(trained, prompt, 3, **warp))
    torch.manual_seed(0)
    trained.speculation = speculative.Speculation()
    out = trained.generate(
        torch.tensor([prompt] * count),
        max_new_tokens=3,
        do_sample=True,
        top_k=0,
        use_mtp=True,
        num_assistant_tokens=2,
        **warp,
    )
    found: dict[tuple[int, ...], int] = {}
    for row in out[:, 2:].tolist():
        key = tuple(row[: row.index(END) + 1] if END in row else row)
        found[key] = found.get(key, 0) + 1
    assert not found.keys() - exact.keys() and 0.1 < trained.speculation.acceptance < 0.9
    frequent = {key: p * count for key, p in exact.items() if p * count >= 5}
    statistic = sum((found.get(key, 0) - wanted) ** 2 / wanted for key, wanted in frequent.items())
    degrees = len(frequent) - 1
    assert degrees > 20
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5  # mean and standard deviation of chi-square


def test_rejection_gives_the_target_whatever_was_drafted() -> None:
    """Drafts from q, kept or replaced: p. Two positions, q far from p at the second, and zero where p is not."""
    torch.manual_seed(0)
    count, p = 200_000, torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.5, 0.5]])
    q = torch.tensor([[0.2, 0.3, 0.1, 0.4], [0.7, 0.3, 0.0, 0.0]])
    drafts = torch.stack([row.expand(count, -1).multinomial(1)[:, 0] for row in q], 1)
    accepted, after = speculative.accept(drafts, q.expand(count, -1, -1), p.expand(count, -1, -1))
    tokens = torch.cat([drafts, torch.zeros(count, 1, dtype=torch.long)], 1)
    tokens[torch.arange(count), accepted] = after
    joint = torch.zeros(4, 4)
    reached = accepted >= 1
    for a, b in product(range(4), range(4)):
        joint[a, b] = ((tokens[:, 0] == a) & (tokens[:, 1] == b) & reached).sum() / reached.sum()
    first = torch.bincount(tokens[:, 0], minlength=4) / count
    torch.testing.assert_close(first, p[0], atol=0.005, rtol=0)
    torch.testing.assert_close(joint.sum(0), p[1], atol=0.005, rtol=0)  # the second does not depend on the first
    last = torch.bincount(tokens[accepted == 2, 2], minlength=4) / (accepted == 2).sum()
    torch.testing.assert_close(last, p[2], atol=0.01, rtol=0)


def test_what_depends_on_more_than_one_token_is_refused(trained: V3ForCausalLM) -> None:
    with pytest.raises(ValueError, match="RepetitionPenalty"):
        trained.generate(torch.tensor([[5]]), use_mtp=True, repetition_penalty=1.2, max_new_tokens=3)
    with pytest.raises(ValueError, match="num_nextn_predict_layers is 0"):
        make(0).generate(torch.tensor([[5]]), use_mtp=True)


def test_the_switch_in_a_generation_config_is_the_same(trained: V3ForCausalLM) -> None:
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": END, "pad_token_id": PAD}
    batch = prompts(4, 7)
    config = GenerationConfig(**settings, use_mtp=True, num_assistant_tokens=2)
    trained.speculation = speculative.Speculation()
    ours = trained.generate(**batch, generation_config=config)
    assert trained.speculation.rounds and config.use_mtp
    assert ours.tolist() == trained.generate(**batch, generation_config=GenerationConfig(**settings)).tolist()


def test_criteria_of_the_caller_end_rows(trained: V3ForCausalLM) -> None:
    """They see every row of the batch as far as it is, its last token last."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class After(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            lengths = (input_ids != PAD).sum(1)
            assert (input_ids[:, -1] != PAD).all()
            return (lengths > 20) & (torch.arange(len(input_ids)) > 0)

    batch = {name: tensor[:, -2:] for name, tensor in prompts(4, 8).items()}
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "use_mtp": True}
    free = trained.generate(**batch, **settings)
    ended = trained.generate(**batch, **settings, stopping_criteria=StoppingCriteriaList([After()]))
    assert ended[0].equal(free[0])
    for ours, whole in zip(ended[1:], free[1:], strict=True):
        length = int((ours[2:] != PAD).sum()) + 2
        assert length < 26 and ours[:length].equal(whole[:length])
