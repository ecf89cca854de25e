"""Tasks of lm-evaluation-harness, as its own code reads and judges them, on our engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import harness as comparison
from pipeline.checks import needs
from pipeline.data.vocabulary import VocabularySpec, build
from pipeline.prompts.templates import prompt_template
from pipeline.recipe import RecipeError, load
from pipeline.sampling import harness
from pipeline.sampling.scores import interval
from pipeline.stages.evaluate import evaluate_model

lm_eval = pytest.importorskip("lm_eval")

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "User: {{{{question}}}}\\nAssistant:\\n"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["</answer>"], do_sample: false, max_gen_toks: 3}}
filter_list:
  - {{name: strict, filter: [{{function: regex, regex_pattern: "^nothing says this$"}}, {{function: take_first}}]}}
  - {{name: answer, filter: [{{function: regex, regex_pattern: "<answer> (\\\\d+)"}}, {{function: take_first}}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
CHOICE = """\
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: ["1", "2"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of one's own, and a group of them."""
    made = tmp_path_factory.mktemp("harness")
    sums = [(a, b) for a in range(5) for b in range(5)]
    for name, part in (("local_sums", sums[:20]), ("local_rest", sums[20:])):
        file = made / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"question": f"{a} + {b} =", "answer": f"{a + b}"}) + "\n" for a, b in part))
        (made / f"{name}.yaml").write_text(TASK.format(name=name, file=file, kind="generate_until"))
    (made / "local_choice.yaml").write_text(CHOICE.format(file=made / "local_sums.jsonl"))
    (made / "local_both.yaml").write_text("group: local_both\ntask: [local_sums, local_rest]\n")
    return made


@pytest.fixture(autouse=True, scope="module")
def own_tasks_alone() -> Any:
    """The index of its 14,000 files takes ten seconds; tests of tasks of one's own do without."""
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "_manager", lambda folder: TaskManager(include_path=str(folder), include_defaults=False))
        yield


def test_its_questions_and_its_judgement_stand_in_our_table(folder: Path, calculator: Path, tmp_path: Path) -> None:
    fields = {"harness": ["local_sums", "local_both"], "harness_folder": str(folder), "samples": 1}
    fields |= {"rollout": {"engine": "transformers", "max_tokens": 16, "temperature": 1.0}}
    metrics = evaluate_model(calculator, [], tmp_path, seed=3, **fields)
    entries = metrics["scores"][str(calculator)]
    lines = [json.loads(line) for line in (tmp_path / "output" / "samples.jsonl").read_text().splitlines()]
    for name, n in (("local_sums", 20), ("local_both", 25)):
        entry = entries[name]
        assert entry["n"] == n and entry["samples"] == 1 and 0 < entry["pass@1"] <= 1
        assert entry["sampling"]["harness"] == f"lm-eval {lm_eval.__version__}"
        assert entry["sampling"]["temperature"] == 1.0 and entry["sampling"]["max_tokens"] == 16
        assert entry["thinking"] > 0.2, "the model's thoughts are its own"
        own = lines[:n] if name == "local_sums" else lines[20:]
        assert len(own) == n
        right = []
        for line in own:
            a, b = (int(word) for word in line["question"].split() if word.isdigit())
            right.append(f"<answer> {a + b} </answer>" in line["completion"])
            assert right[-1] == (line["status"] == "correct")
        assert entry["pass@1"] == pytest.approx(sum(right) / n)
        assert (entry["low"], entry["high"]) == interval([float(one) for one in right], 1)
    assert entries["local_sums"]["harness"]["local_sums/exact_match,answer"] == entries["local_sums"]["pass@1"]
    assert entries["local_sums"]["harness"]["local_sums/exact_match,strict"] == 0

    again = evaluate_model(calculator, [], tmp_path, seed=3, **fields)  # from the chunks on the disk
    assert again["scores"] == metrics["scores"]


def test_what_wants_probabilities_is_refused_before_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        harness.HarnessError, match=r"local_choice needs multiple_choice, .* engines here only generate"
    ):
        evaluate_model("no/model", [], tmp_path, harness=["local_choice"], harness_folder=str(folder))


FAULTS = {
    "nothing to score": ("", "say what to score on: `tasks:`, or `harness:`"),
    "twice": ("harness: [ifeval, ifeval]", "'ifeval' is given twice"),
    "a folder for nothing": ("tasks: [arithmetic], harness_folder: .", "harness_folder has no effect"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_means_nothing_is_told_with_the_recipe(what: str, tmp_path: Path) -> None:
    fields, message = FAULTS[what]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: r\nstages:\n  score: {{kind: evaluate, model: some/model, {fields}}}\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert message in str(caught.value) and "recipe.yaml:3: stages.score" in str(caught.value)


def test_an_unknown_task_is_told_before_anything_runs_with_the_nearest(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = "name: r\ntask: arithmetic\nstages:\n  score: {{kind: evaluate, model: some/model, harness: [{}], {}}}\n"
    path.write_text(text.format("ifeval, local_sum", f"harness_folder: {folder}"))
    recipe = load(path)
    assert recipe.stages["score"].tasks == [], "the recipe's task is for stages that name nothing"
    (told,) = [line for line in needs.unmet(recipe, ["score"]) if "harness" in line]
    assert told.startswith("stages.score.harness: lm-evaluation-harness has no task 'local_sum'")
    assert "did you mean 'local_sums'?" in told
    path.write_text(text.format("ifeval, gpqa_diamond_cot_zeroshot", "samples: 1"))
    assert not [line for line in needs.unmet(load(path), ["score"]) if "harness" in line]


def test_without_the_package_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: r\nstages:\n  score: {kind: evaluate, model: some/model, harness: [ifeval]}\n")
    recipe = load(path)
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    (told,) = [line for line in needs.unmet(recipe, ["score"]) if "harness" in line]
    assert told.startswith("stages.score.harness: needs the package lm_eval, which is not installed here: pip install")
    assert "lm-eval" in told


@pytest.fixture(scope="module")
def boxing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to box sums, asked as the benchmark asks; those of 4 are wrong."""
    said = {(a, b): (a + b + (a == 4)) for a in range(5) for b in range(2)}
    ask = prompt_template(comparison.TEMPLATE)
    texts = [
        f"User: {ask(f'{a} + {b} =')[-1]['content']}\nAssistant:\n\\boxed{{{n}}} <eos>" for (a, b), n in said.items()
    ]
    tokenizer = build(VocabularySpec(kind="words"), texts)
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    labels_BT = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape, **ends))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        model(**batch, labels=labels_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("boxing")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_three_ways_to_the_same_score_agree_problem_by_problem(boxing: Path, tmp_path: Path) -> None:
    """Our evaluation, the harness's judge on our engine, and the harness by itself, prompts and engine included."""
    sums = [(a, b) for a in range(5) for b in range(2)]
    rows = [{"question": f"{a} + {b} =", "answer": f"{a} and {b}.\n#### {a + b}"} for a, b in sums]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for way in comparison.WAYS:
        job = {"model": str(boxing), "problems": str(tmp_path), "max_tokens": 12, "engine": "transformers"}
        (folder := tmp_path / way).mkdir()
        comparison.child(json.dumps({**job, "way": way, "limit": None, "folder": str(folder)}))
        found[way] = json.loads((folder / "found.json").read_text())
    told = comparison.compare(found)
    for way in ("judged", "foreign"):
        together = told["agreement"][way]
        assert together["problems"] == together["same_prompt"] == together["same_answer"] == len(sums), way
        assert together["same_verdict_on_same_answer"] == together["same_verdict"] == len(sums)
    assert told["agrees"] and told["foreign"]["n"] == told["ours"]["n"] == len(sums)
    assert told["foreign"]["pass@1"] == told["ours"]["pass@1"] == 0.8
    question, (prompt, said, right, _) = next(iter(found["foreign"]["answers"].items()))
    assert prompt.startswith(f"User: {question}") and "\\boxed{}" in prompt
    assert right == (said == f"\\boxed{{{sum(int(word) for word in question.split() if word.isdigit())}}}")


@pytest.mark.parametrize(("theirs", "agrees"), [(0.4, True), (0.6, True), (0.39, False), (0.61, False)])
def test_scores_agree_where_theirs_lies_in_our_interval(theirs: float, agrees: bool) -> None:
    entry = {"n": 10, "low": 0.4, "high": 0.6}
    scores = {"ours": 0.5, "judged": 0.5, "foreign": theirs}
    found = {way: {"entry": {**entry, "pass@1": score}, "answers": {}} for way, score in scores.items()}
    assert comparison.compare(found)["agrees"] == agrees


def test_judges_that_differ_on_the_same_answer_are_told_with_what_they_found() -> None:
    ours = {"a": ["p", "18.00", True, "18"], "b": ["p", "7", True, "7"], "c": ["p", "x", False, None]}
    theirs = {"a": ["p", "18.00", False, "18.00"], "b": ["q", "7", True, "7"], "c": ["p", "y", True, "5"]}
    found = comparison.agreement(ours, theirs)
    counts = {key: value for key, value in found.items() if key != "told"}
    assert counts == {
        "problems": 3, "same_prompt": 2, "same_answer": 2, "same_verdict_on_same_answer": 1, "same_verdict": 1,
    }  # fmt: skip
    assert found["told"] == [{"question": "a", "answer": "18.00", "right": [True, False], "extracted": ["18", "18.00"]}]
    assert comparison.compare({"ours": {"failed": "exit code 1"}}) == {"failed": {"ours": "exit code 1"}}
