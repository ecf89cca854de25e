"""The API of `rewards`: loading, batches, verdict policy, composites, plug-ins."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import textwrap

import pytest

import rewards
from rewards import (
    Batch,
    Composite,
    Item,
    Part,
    RewardError,
    RewardFunction,
    RewardInfraError,
    Status,
    Verdict,
)
from rewards.registry import ENTRY_POINTS, find


@pytest.fixture
def plugin(tmp_path):
    """A file of rewards as a user would write it."""
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            '''
            from rewards import Status, Verdict, reward

            def brevity(completion):
                """Short is good."""
                return 1.0 if len(completion) < 5 else 0.25

            def trl_style(prompts, completions, answer, **kwargs):
                return [1.0 if c[-1]["content"] == a else 0.0 for c, a in zip(completions, answer, strict=True)]

            def watched(completions, trainer_state, log_extra, log_metric):
                log_extra("seen", [c.upper() for c in completions])
                log_metric("rows", len(completions))
                return [float(trainer_state)] * len(completions)

            def forgetful(completions, log_extra):
                log_extra("seen", ["only one"])
                return [1.0] * len(completions)

            def everything(completions, **given):
                return [float(given["log_metric"] is not None and "log_extra" not in given)] * len(completions)

            def misfit(completions):
                return [None if c == "skip" else 0.5 for c in completions]

            def nan(completion):
                return float("nan")

            def too_few(completions):
                return [1.0]

            @reward("renamed")
            def anything(completion, answer):
                return float(completion == answer)

            class Grader:
                """A verifier with one option."""

                def __init__(self, accepts="yes"):
                    self.accepts = accepts

                def verify(self, items):
                    return [
                        Verdict.of(Status[item.completion]) if item.completion.isupper()
                        else Verdict.graded(float(item.completion == self.accepts), item.completion)
                        for item in items
                    ]

            class NotAVerifier:
                pass
            '''
        )
    )
    return file


def texts(*completions):
    return ["q"] * len(completions), list(completions)


# Loading ---------------------------------------------------------------------------------------------------------


def test_a_typing_error_names_the_nearest_reward_and_option():
    with pytest.raises(RewardError, match="did you mean 'math'"):
        rewards.load("maths")
    with pytest.raises(RewardError, match="did you mean 'lenient'"):
        rewards.load("math", leniant=True)


def test_a_file_of_your_own_in_every_spelling(plugin):
    assert rewards.load(f"{plugin}:brevity")(*texts("abc", "abcdefgh")) == [1.0, 0.25]
    assert rewards.load(f"{plugin}:renamed")(*texts("a", "b"), answer=["a", "a"]) == [1.0, 0.0]
    assert rewards.load("mine.py:Grader", plugin.parent, accepts="no")(*texts("yes", "no")) == [0.0, 1.0]
    with pytest.raises(RewardError, match=r"did you mean .brevity"):
        rewards.load(f"{plugin}:brevety")
    with pytest.raises(RewardError, match="no file"):
        rewards.load("absent.py:f")
    with pytest.raises(RewardError, match="takes no options"):
        rewards.load(f"{plugin}:brevity", length=3)
    with pytest.raises(TypeError, match="without a method verify"):
        rewards.load(f"{plugin}:NotAVerifier")(*texts("a"))


def test_a_broken_file_is_a_clear_error(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module_at_all")
    with pytest.raises(RewardError, match="ModuleNotFoundError"):
        rewards.load("broken.py:f", tmp_path)


def test_importable_objects_and_entry_points(monkeypatch, plugin):
    assert find("rewards.text:plain").name == "plain"
    monkeypatch.syspath_prepend(plugin.parent)
    folder = plugin.parent / "zero2r1_plugin-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: zero2r1-plugin\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nbrief = mine:brevity\n")
    assert rewards.names()["brief"] == "mine:brevity"
    assert rewards.load("brief")(*texts("abc")) == [1.0]


def test_every_builtin_name_resolves_and_says_what_it_does():
    for name in rewards.names():
        assert find(name).summary, name


def test_importing_rewards_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'trl', 'sympy', 'math_verify', 'vllm', 'datasets', 'mpmath'}"
    code = f"import sys, rewards; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_it_pickles_before_and_after_use(plugin):
    for use in ("math", f"{plugin}:brevity"):
        function = rewards.load(use)
        copy = pickle.loads(pickle.dumps(function))
        assert copy(*texts("7"), answer=["7"]) == [1.0]
        function(*texts("7"), answer=["7"])
        again = pickle.loads(pickle.dumps(function))
        assert again(*texts("7"), answer=["7"]) == [1.0]
        assert again.__name__ == function.__name__


# Batches and policy ----------------------------------------------------------------------------------------------


def test_strings_and_message_lists_are_the_same_to_a_verifier():
    function = rewards.load("math")
    message = [{"role": "assistant", "content": r"\boxed{7}"}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": r"\boxed{7}"}]}]
    for completion in (r"\boxed{7}", message, parts):
        assert function([[{"role": "user", "content": "q"}]], [completion], answer=["7"]) == [1.0]


def test_a_plain_trl_function_gets_the_messages_as_they_are(plugin):
    function = rewards.load(f"{plugin}:trl_style")
    chat = [[{"role": "assistant", "content": "7"}], [{"role": "assistant", "content": "8"}]]
    assert function(["q", "q"], chat, answer=["7", "7"], other=[1, 2]) == [1.0, 0.0]


def test_none_means_not_mine(plugin):
    assert rewards.load(f"{plugin}:misfit")(*texts("skip", "do")) == [None, 0.5]


def test_lengths_are_checked():
    function = rewards.load("math")
    with pytest.raises(ValueError, match="2 completions but 1 entries in 'answer'"):
        function(*texts("a", "b"), answer=["7"])
    with pytest.raises(ValueError, match="'prompts'"):
        function(["q"], ["a", "b"], answer=["7", "7"])
    assert function([], [], answer=[]) == []


def test_nan_and_lost_scores_are_refused(plugin):
    with pytest.raises(ValueError, match="nan for row 0"):
        rewards.load(f"{plugin}:nan")(*texts("a"))
    with pytest.raises(ValueError, match="1 scores for 2"):
        rewards.load(f"{plugin}:too_few")(*texts("a", "b"))


def test_status_decides_the_score():
    scores = {status: Verdict.of(status).score for status in Status}
    assert scores.pop(Status.CORRECT) == 1.0
    assert scores.pop(Status.BAD_GOLD) is None
    assert scores.pop(Status.INFRA) is None
    assert set(scores.values()) == {0.0}
    assert Verdict.graded(0.99).status is Status.WRONG


def test_broken_judges_stop_training(plugin):
    function = rewards.load(f"{plugin}:Grader")
    assert function(*texts("INFRA", *["yes"] * 19)) == [None] + [1.0] * 19
    with pytest.raises(RewardInfraError, match="5 of 20"):
        RewardFunction(f"{plugin}:Grader", max_infra=0.2)(*texts(*["INFRA"] * 5, *["yes"] * 15))
    with pytest.raises(RewardInfraError, match="2 of 2"):
        function(*texts("INFRA", "INFRA"))
    assert function(*texts(*["BAD_GOLD"] * 20)) == [None] * 20


def test_metrics_and_extracted_answers_are_logged():
    metrics, extra = {}, {}
    function = rewards.load("math")
    function(
        *texts(r"\boxed{1}", r"\boxed{2}"),
        answer=["1", "1"],
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
    )
    assert metrics["rewards/math/correct"] == metrics["rewards/math/wrong"] == 0.5
    assert extra["math_extracted"] == ["1", "2"]


def test_functions_get_what_the_trainer_gives_and_log_for_their_own_rows(plugin):
    metrics, extra = {}, {}
    logs = {"log_metric": metrics.__setitem__, "log_extra": extra.__setitem__}
    assert rewards.load(f"{plugin}:watched")(*texts("a", "b"), trainer_state=3, **logs) == [3.0, 3.0]
    assert (metrics["rows"], extra["seen"]) == (2, ["A", "B"])
    composite = Composite([Part(f"{plugin}:watched", where={"domain": "prose"})])
    assert composite(*texts("a", "b", "c"), trainer_state=2, **logs, domain=["prose", "code", "prose"]) == [
        2.0,
        None,
        2.0,
    ]
    assert (metrics["rows"], extra["seen"]) == (2, ["A", None, "C"])
    with pytest.raises(ValueError, match="2 completions but 1 entries in 'seen'"):
        Composite([Part(f"{plugin}:forgetful")])(*texts("a", "b"), **logs)
    assert rewards.load(f"{plugin}:everything")(*texts("a"), log_metric=metrics.__setitem__) == [1.0]


def test_verify_takes_items_mappings_and_pairs():
    given = [Item("7", "7"), {"completion": "7", "solution": "7"}, ("8", "7"), {"completion": "7", "answer": None}]
    statuses = [v.status for v in rewards.verify("math", given)]
    assert statuses == [Status.CORRECT, Status.CORRECT, Status.WRONG, Status.BAD_GOLD]


def test_completions_without_a_token_have_token_ids_all_the_same():
    empty, unknown = Item("", "1", completion_ids=[]), Item("", "1")
    assert Batch.of([empty, empty]).completion_ids == [[], []]
    assert Batch.of([empty, unknown]).completion_ids == [[], []]
    assert Batch.of([unknown, unknown]).completion_ids is None
    lengths = rewards.load("cosine_length", max_tokens=8)
    alone = lengths(["q"] * 2, ["", ""], [[], []], answer=["1", "1"])
    accuracy = rewards.load(
        "pipeline.tasks.grading:Accuracy", graders={"t": {"use": "cosine_length", "options": {"max_tokens": 8}}}
    )
    assert accuracy(["q"] * 2, ["", ""], [[], []], answer=["1", "1"], task=["t", "t"]) == alone


# Composites ------------------------------------------------------------------------------------------------------


def test_weights_gates_and_clipping(plugin):
    composite = Composite(
        [
            Part("math", weight=2.0),
            Part(f"{plugin}:brevity", weight=0.5, gate="math", name="brief"),
            Part(f"{plugin}:brevity", clip=(0.0, 0.1), name="clipped"),
        ]
    )
    assert composite(*texts("7", r"So it is \boxed{7}", "8"), answer=["7"] * 3) == pytest.approx([2.6, 2.225, 0.1])


def test_routing_by_a_data_column(plugin):
    composite = Composite(
        [
            Part("math", where={"domain": "math"}),
            Part(f"{plugin}:brevity", where={"domain": ["prose", "chat"]}),
        ]
    )
    scores = composite(*texts("7", "seven", "7"), answer=["7"] * 3, domain=["math", "prose", "code"])
    assert scores == [1.0, 0.25, None]
    with pytest.raises(ValueError, match="'domain', which the data lacks"):
        composite(*texts("7"), answer=["7"])


def test_a_row_without_a_gold_is_left_out_as_a_whole(plugin):
    composite = Composite([Part("math"), Part(f"{plugin}:brevity")])
    assert composite(*texts("7", "7"), answer=["7", None]) == [2.0, None]


def test_parts_have_their_own_metrics(plugin):
    metrics = {}
    composite = Composite([Part("math"), Part(f"{plugin}:brevity", name="brief")])
    composite(*texts("7", "8"), answer=["7", "7"], log_metric=metrics.__setitem__)
    assert metrics["rewards/math/score"] == 0.5
    assert metrics["rewards/brief/score"] == 1.0


def test_senseless_composites_are_refused_when_built(plugin):
    with pytest.raises(RewardError, match="at least one"):
        Composite([])
    with pytest.raises(RewardError, match="not an earlier reward"):
        Composite([Part("math", gate="think_format"), Part("think_format")])
    with pytest.raises(RewardError, match="two rewards are called"):
        Composite([Part("math"), Part("math")])
    with pytest.raises(RewardError, match="clip"):
        Composite([Part("math", clip=(1.0, 0.0))])


def test_composites_pickle():
    composite = pickle.loads(pickle.dumps(Composite([Part("math", weight=3.0)])))
    assert composite(*texts("7"), answer=["7"]) == [3.0]


def test_selected_rows_keep_their_columns():
    batch = Batch(["p", "q", "r"], ["a", "b", "c"], [[1], [2], [3]], {"answer": [1, 2, 3]}).select([2, 0])
    assert [(i.completion, i.answer, list(i.completion_ids)) for i in batch.items()] == [("c", 3, [3]), ("a", 1, [1])]
    assert not math.isnan(len(batch))
