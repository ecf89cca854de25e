"""Tree search and plain sampling for many problems side by side, each with the same number of sampled tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.prompts.rendering import Prompt
from pipeline.rollout.base import Finish, Rollout, RolloutError, derived_seed
from pipeline.search.tree import Grown, Node, Tree
from pipeline.search.writer import Writer
from rewards.process import StepReader, StepScorer
from rewards.text import THINK_CLOSE


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        rollout: its text and tokens.
        at: tokens that had been sampled for its problem when its last one was.
    """

    rollout: Rollout
    at: int


@dataclass
class Values:
    """The value model: the chance that an answer which begins so comes out right.

    Attributes:
        scorer: the model.
        reader: what it is shown.
        writer: knows the steps.
    """

    scorer: StepScorer
    reader: StepReader
    writer: Writer

    def of(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> list[float]:
        """A value for each answer, whole or not."""
        readings = [
            self.reader.read(prompt.text, [self.writer.decode(step) for step in self.writer.steps(ids)])
            for prompt, ids in zip(prompts, answers, strict=True)
        ]
        values = [chances[-1] for chances in self.scorer.chances(readings)]
        if any(map(math.isnan, values)):
            raise RolloutError(f"an answer is longer than the {self.scorer.longest} tokens that the value model reads")
        return values


def sampled(writer: Writer, prompts: Sequence[Prompt], budget: int, seed: int) -> list[list[Answer]]:
    """Independent answers to each problem until at least `budget` tokens are sampled for it."""
    asked = writer.ids(prompts)
    found: list[list[Answer]] = [[] for _ in prompts]
    round_ = 0
    while short := [at for at, answers in enumerate(found) if _spent(answers) < budget]:
        n = max(-(-(budget - _spent(found[at])) // writer.most) for at in short)
        groups = writer.answers([asked[at] for at in short], [()] * len(short), n, derived_seed(seed, "plain", round_))
        for at, group in zip(short, groups, strict=True):
            add(found[at], group)
        round_ += 1
    return found


def add(answers: list[Answer], rollouts: Sequence[Rollout], spent: int = 0) -> None:
    """Put rollouts behind the answers of a problem, for which `spent` tokens were sampled besides."""
    for rollout in rollouts:
        before = max(spent, _spent(answers))
        answers.append(Answer(rollout, before + len(rollout.token_ids)))


def _spent(answers: Sequence[Answer]) -> int:
    return answers[-1].at if answers else 0


@dataclass
class Search:
    """Monte Carlo tree search with a value model.

    Attributes:
        writer: the policy.
        values: the value model.
        width: steps that are sampled at a node.
        exploration: see `pipeline.search.tree`.
        grown: nodes so far.
        exhausted: problems whose tree was closed before the budget was spent; independent answers spent the rest.
        tokens: sampled so far, beyond budgets included.
    """

    writer: Writer
    values: Values
    width: int
    exploration: float
    grown: int = 0
    exhausted: int = 0
    tokens: int = 0

    def answers(self, prompts: Sequence[Prompt], budget: int, seed: int) -> list[list[Answer]]:
        """The answers found for each problem with at least `budget` tokens, in the order of `at`."""
        asked = self.writer.ids(prompts)
        trees = [Tree(self.exploration) for _ in prompts]
        number = 0
        while going := [at for at, tree in enumerate(trees) if tree.spent < budget and not tree.root.closed]:
            leaves = [trees[at].select() for at in going]
            heads = [leaf.ids for leaf in leaves]
            grown = self._steps([asked[at] for at in going], heads, derived_seed(seed, "tree", number))
            new: list[tuple[int, Node]] = []
            for at, leaf, steps in zip(going, leaves, grown, strict=True):
                new += [(at, node) for node in trees[at].grow(leaf, steps)]
            values = self.values.of([prompts[at] for at, _ in new], [node.ids for _, node in new])
            for (at, node), value in zip(new, values, strict=True):
                trees[at].back_up(node, value)
            self.grown += len(new)
            number += 1
        return self._with_the_rest(prompts, trees, budget, seed)

    def _steps(self, asked: Sequence[Sequence[int]], heads: Sequence[tuple[int, ...]], seed: int) -> list[list[Grown]]:
        """`width` steps behind each beginning. What closes the thought goes on to the answer's end: one last step."""
        groups = self.writer.next_steps(asked, heads, self.width, derived_seed(seed, "steps"))
        flat = [
            (place, (*head, *rollout.token_ids), len(rollout.token_ids), ended)
            for place, (head, group) in enumerate(zip(heads, groups, strict=True))
            for rollout, ended in group
        ]
        open_ = [at for at, (_, ids, _, ended) in enumerate(flat) if not ended and self._closes(ids)]
        ends = self.writer.answers(
            [asked[flat[at][0]] for at in open_], [flat[at][1] for at in open_], 1, derived_seed(seed, "ends")
        )
        whole = {at: group[0].token_ids for at, group in zip(open_, ends, strict=True)}
        found: list[list[Grown]] = [[] for _ in heads]
        for at, (place, ids, tokens, ended) in enumerate(flat):
            more = len(whole[at]) - len(ids) if at in whole else 0
            found[place].append(Grown(whole.get(at, ids)[: self.writer.most], tokens + more, ended or at in whole))
        return found

    def _closes(self, ids: Sequence[int]) -> bool:
        return THINK_CLOSE in self.writer.decode(ids)

    def _with_the_rest(
        self, prompts: Sequence[Prompt], trees: Sequence[Tree], budget: int, seed: int
    ) -> list[list[Answer]]:
        """The trees' answers, and independent ones where a tree had nothing more to grow."""
        asked = self.writer.ids(prompts)
        found = [
            sorted((Answer(self._rollout(node), node.at) for node in tree.answers()), key=lambda one: one.at)
            for tree in trees
        ]
        spent = [tree.spent for tree in trees]
        self.exhausted += sum(one < budget for one in spent)
        number = 0
        while short := [at for at, one in enumerate(spent) if one < budget]:
            n = max(-(-(budget - spent[at]) // self.writer.most) for at in short)
            groups = self.writer.answers(
                [asked[at] for at in short], [()] * len(short), n, derived_seed(seed, "rest", number)
            )
            for at, group in zip(short, groups, strict=True):
                add(found[at], group, spent[at])
                spent[at] = found[at][-1].at
            number += 1
        self.tokens += sum(spent)
        return found

    def _rollout(self, node: Node) -> Rollout:
        cut = len(node.ids) >= self.writer.most
        return Rollout(self.writer.decode(node.ids), node.ids, Finish.LENGTH if cut else Finish.STOP)
