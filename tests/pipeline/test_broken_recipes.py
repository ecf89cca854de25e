"""Every way to get a recipe wrong that we could think of, and what the user is told: file, line, what would be right.

Each case changes one thing in a recipe that is right. `#!` marks the line that the message has to name.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.recipe import RecipeError, load

GOOD = """\
name: tiny
seed: 3
task: sums
tasks:
  sums: {use: arithmetic, options: {digits: 1}}
stages:
  base:
    kind: pretrain
    model: nano
    vocabulary: {kind: words}
    corpus: {use: "corpus.py:Sums", documents: 200}
    length: 32
    trainer: {max_steps: 30, learning_rate: 3.0e-3}
  zero:
    kind: grpo
    model: "@base"
    rewards:
      - accuracy
      - {use: think_format, weight: 0.1, gate: accuracy}
      - "rewards.py:brevity"
    rollout: {engine: transformers, max_tokens: 32}
    trainer:
      num_generations: 8
      learning_rate: 1.0e-4
      max_steps: 5
  samples:
    kind: rejection_sample
    model: "@zero"
    tasks: [{use: sums, problems: 20}]
    samples: 4
  taught:
    kind: sft
    model: "@base"
    data:
      - "@samples"
      - {from: rows.jsonl, take: 10}
    trainer: {num_train_epochs: 1}
  score:
    kind: evaluate
    models: ["@zero", "@taught"]
    tasks: [sums/test]
    samples: 2
"""

CORPUS = """\
from pipeline.data.corpus import Corpus


class Sums(Corpus):
    def documents(self, n, seed):
        yield from (f"{i} + {i} = {i + i}" for i in range(n))
"""
REWARDS = """\
def brevity(completion: str) -> float:
    return 1.0 if len(completion) < 200 else 0.0


def logging(completion: str, log_metric) -> float:
    return 1.0


def scheduled(completions, trainer_state, log_extra=None):
    return [1.0] * len(completions)


def mean(completions) -> float:
    return sum(map(len, completions)) / len(completions)


NUMBER = 7
"""
SECONDS = 0.5
"""Processor time to answer one broken recipe."""


@dataclass(frozen=True)
class Case:
    """`old` in the recipe is replaced by `new`; the one complaint is about the marked line and says all of `says`."""

    old: str
    new: str
    says: tuple[str, ...]


def case(old: str, new: str, *says: str) -> Case:
    assert new.count("#!") <= 1
    return Case(old, new, says)


_ZERO = "    rollout: {engine: transformers, max_tokens: 32}\n"
CASES = {
    # The file itself.
    "no YAML": case("task: sums", "task: sums: 3 #!", "not YAML"),
    "a tab": case("    length: 32", "\tlength: 32 #!", "not YAML"),
    "a key twice": case("seed: 3", "seed: 3\nseed: 4 #!", "seed", "twice"),
    "a reference without its sign": case('model: "@zero"', "model: zero #!", 'write "@zero", with the quotes'),
    "rows of a stage without its sign": case(
        '      - "@samples"', "      - samples #!", 'write "@samples", with the quotes'
    ),
    "a reference without quotes": case('model: "@zero"', "model: @zero #!", 'into quotes, such as "@base"'),
    "two documents": case("name: tiny", "name: one\n--- #!\nname: tiny", "one document"),
    "a character that no text has": case("name: tiny", "name: ti\0ny #!", "U+0000"),
    # The top level.
    "unknown key at the top": case("seed: 3", "sead: 3 #!", "unknown key", "did you mean 'seed'"),
    "no name": case("name: tiny\n", "", "name", "is required"),
    "a name that is no folder": case("name: tiny", "name: ../tiny #!", "name", "letters, digits"),
    "a name that is a number": case("name: tiny", "name: 5 #!", "put it into quotes, not 5"),
    "tasks in a list": case(
        "tasks:\n  sums: {use: arithmetic, options: {digits: 1}}", "tasks: [sums] #!", "has to be a mapping of its keys"
    ),
    "a fault in defaults": case(
        "seed: 3", "defaults:\n  grpo:\n    rollout: {max_token: 3} #!", "defaults.grpo.rollout.max_token: unknown key"
    ),
    "a fault in launch": case("seed: 3", "launch: {accelerate: fsdp3} #!", "launch.accelerate: there is no accelerate"),
    "seed is text": case("seed: 3", "seed: three #!", "seed", "integer", "three"),
    "seed is quoted": case("seed: 3", 'seed: "3" #!', "seed", "integer"),
    "jobs is zero": case("seed: 3", "jobs: 0 #!", "jobs", "greater than or equal to 1"),
    "the recipe's task": case("task: sums", "task: sumz #!", "sumz", "did you mean 'sums'"),
    "unknown kind in defaults": case("seed: 3", "defaults:\n  gppo: {} #!", "gppo", "did you mean 'grpo'"),
    # Held-out scores while a stage trains.
    "watch a task that is not there": case(
        _ZERO, _ZERO + "    watch: {tasks: [sum/test], every: 2} #!\n", "mean 'sums'"
    ),
    "watch every 0 steps": case(_ZERO, _ZERO + "    watch: {every: 0} #!\n", "every", "greater than or equal to 1"),
    "watch without every": case(_ZERO, _ZERO + "    watch: {problems: 9} #!\n", "watch.every", "is required"),
    "watch what is trained on": case(
        _ZERO, _ZERO + "    watch: {tasks: [sums/train], every: 2} #!\n", "trains on sums"
    ),
    "watch greedily, twice": case(
        _ZERO, _ZERO + "    watch: {every: 2, samples: 2, temperature: 0} #!\n", "temperature"
    ),
    "watch longer than the model reads": case(
        _ZERO, _ZERO + "    watch: {every: 2, max_tokens: 4096} #!\n", "is 4096, and @base reads", "lower it"
    ),
    "keep without watch": case(_ZERO, _ZERO + "    keep: best\n", "keep goes by a held-out score: add watch"),
    "keep by what is not watched": case(
        _ZERO, _ZERO + "    watch: {every: 2}\n    keep: {by: sums/tset} #!\n", "sums/tset", "did you mean 'sums/test'"
    ),
    "keep by a score of several samples": case(
        _ZERO, _ZERO + "    watch: {every: 2}\n    keep: {by: sums/test/pass@k} #!\n", "gives no score"
    ),
    "keep by one of several": case(
        _ZERO, _ZERO + "    watch: {tasks: [sums, countdown], every: 2}\n    keep: best #!\n", "say by which score"
    ),
    "stop never": case(_ZERO, _ZERO + "    watch: {every: 2}\n    stop: {} #!\n", "patience", "above"),
    "stop above 80": case(
        _ZERO, _ZERO + "    watch: {every: 2}\n    stop: {above: 80} #!\n", "less than or equal to 1"
    ),
    "watch a reward model": case(
        "    kind: sft\n", "    kind: reward_model\n    watch: {every: 2} #!\n", "writes none", "`grpo` stage"
    ),
    "TRL's evaluation": case("max_steps: 5", "max_steps: 5\n      eval_steps: 5 #!", "its `watch` scores"),
    "transformers' best model": case(
        "max_steps: 5", "max_steps: 5\n      load_best_model_at_end: true #!", "keep: best"
    ),
    # Tasks.
    "unknown task": case("use: arithmetic", "use: arithmetics #!\n   ", "did you mean 'arithmetic'"),
    "unknown task option": case("options: {digits: 1}", "options: {digit: 1} #!\n   ", "did you mean 'digits'"),
    "task option out of range": case("options: {digits: 1}", "options: {digits: 0} #!\n   ", "digits", "1 or more"),
    "a task without what it must have": case("use: arithmetic, options: {digits: 1}", "use: jsonl #!\n   ", "path"),
    "a task's file that is not there": case(
        "use: arithmetic, options: {digits: 1}", "use: jsonl, options: {path: nothing.jsonl} #!\n   ", "nothing.jsonl"
    ),
    "unknown task in a stage": case("[sums/test]", "[sum/test] #!", "did you mean 'sums'"),
    "unknown split": case("[sums/test]", "[sums/tset] #!", "tset", "did you mean 'test'"),
    "a task of a file that is not there": case("[sums/test]", '["mine.py:Task"] #!', "mine.py"),
    "a task that is a function": case("[sums/test]", '["rewards.py:brevity"] #!', "subclass"),
    "no problems": case("problems: 20}]", "problems: 0}] #!", "problems", "greater than 0"),
    "a task twice": case("[sums/test]", "[sums/test, chain, sums] #!", "'sums/test' is given twice"),
    "no tasks": case("[sums/test]", "[] #!", "tasks", "at least 1"),
    # Stages.
    "no stages": case(GOOD[GOOD.index("stages:") :], "stages: {} #!\n", "stages", "at least 1"),
    "no kind": case("    kind: sft\n", "", "kind"),
    "unknown kind": case("kind: sft", "kind: stf #!", "stf", "did you mean 'sft'"),
    "unknown key": case("length: 32", "lenght: 32 #!\n    length: 32", "unknown key", "did you mean 'length'"),
    "unknown key deep inside": case("max_tokens: 32}", "max_token: 32} #!", "did you mean 'max_tokens'"),
    "a key's earlier name": case(
        "    trainer:\n      num_generations: 8",
        "    efficiency: {plain_steps: false} #!\n    trainer:\n      num_generations: 8",
        "stages.zero.efficiency.plain_steps: is called rollout.scheduler_fast_path now",
    ),
    "a key that is gone": case(
        "    trainer:\n      num_generations: 8",
        "    efficiency: {reload_weights: false} #!\n    trainer:\n      num_generations: 8",
        "stages.zero.efficiency.reload_weights: is gone",
    ),
    "an earlier name beside others": case(
        "    trainer:\n      num_generations: 8",
        "    efficiency: {packing: true, fold_old_logprobs: false} #!\n    trainer:\n      num_generations: 8",
        "is called reuse_logprobs now",
    ),
    "unknown key in a list": case("take: 10}", "takes: 10} #!", "did you mean 'take'"),
    "a required key is missing": case("    length: 32\n", "", "length", "is required"),
    "an integer that is text": case("length: 32", "length: long #!", "length", "integer", "'long'"),
    "an integer that is a fraction": case("length: 32", "length: 32.5 #!", "length", "integer"),
    "an integer that is negative": case("length: 32", "length: -32 #!", "length", "greater than 1"),
    "a list that is text": case('["@zero", "@taught"]', '"@zero" #!', "models", "list"),
    "a mapping that is a list": case("{engine: transformers, max_tokens: 32}", "[transformers] #!", "rollout"),
    "a choice that is not there": case("engine: transformers", "engine: transfomers #!\n     ", "'transformers'"),
    "a stage's name with a space": case("  score:", "  the score: #!", "letters"),
    "a stage's name with a dot": case("  score:", "  the.score: #!", "letters", "KEY=VALUE on the command line"),
    "completions beyond the model's context": case("max_tokens: 32}", "max_tokens: 256} #!", "@base reads 256 tokens"),
    "the same further down the chain": case(
        "[sums/test]", "[sums/test]\n    rollout: {max_tokens: 300} #!", "max_tokens", "300, and @zero reads 256 tokens"
    ),
    "a stop that is nothing": case(
        "max_tokens: 32}", 'max_tokens: 32, stop: [""]} #!', "stop", "texts and token ids, not ''"
    ),
    "a message's keys that are no list": case("take: 10}", "take: 10, ignore: name} #!", "ignore", "list"),
    # References.
    "a dangling reference": case('model: "@zero"', 'model: "@zeroo" #!', "no stage 'zeroo'", "did you mean 'zero'"),
    "a dangling reference in a list": case('"@taught"]', '"@tauht"] #!', "did you mean 'taught'"),
    "a dangling reference in data": case('- "@samples"', '- "@sample" #!', "did you mean 'samples'"),
    "a reference to itself": case('model: "@zero"', 'model: "@samples" #!', "itself"),
    "a dataset where a model is wanted": case(
        '["@zero", "@taught"]', '["@samples", "@taught"] #!', "publishes dataset"
    ),
    "a model where data is wanted": case('- "@samples"', '- "@zero" #!', "dataset is wanted", "publishes model"),
    "waiting for a stage that is not there": case(
        "    length: 32", "    length: 32\n    after: [scores] #!", "no stage 'scores'", "did you mean 'score'"
    ),
    "a circle": case("    length: 32", "    length: 32\n    after: [score]", "wait for each other", "base", "score"),
    # Files.
    "a data file that is not there": case("from: rows.jsonl", "from: row.jsonl #!\n        ", "row.jsonl"),
    "a corpus that is not there": case('"corpus.py:Sums"', '"korpus.py:Sums" #!\n     ', "korpus.py"),
    "a value that an option of a built-in corpus cannot have": case(
        '{use: "corpus.py:Sums", documents: 200}',
        "{use: chain, documents: 200, options: {slips: 20}} #!",
        "slips is a share, a number between 0 and 1, not 20",
    ),
    "a model folder that is not there": case('model: "@zero"', "model: ./models/none #!", "models/none"),
    "a model preset that is not there": case("model: nano", "model: nanno #!", "nanno", "nano"),
    "a chat template that is not there": case(
        "  score:",
        "  other: {kind: import_model, model: org/other, chat_template: none.jinja} #!\n  score:",
        "none.jinja",
    ),
    "a chat template that is no Jinja": case(
        "  score:",
        "  other: {kind: import_model, model: org/other, chat_template: broken.jinja} #!\n  score:",
        "broken.jinja:3 is not a Jinja template",
        "unexpected '}'",
    ),
    "a chat template with a filter that Jinja lacks": case(
        "  score:",
        "  other: {kind: import_model, model: org/other, chat_template: filter.jinja} #!\n  score:",
        "filter.jinja:1 is not a Jinja template: No filter named 'trimm'",
    ),
    "a chat template with a name that nothing defines": case(
        "  score:",
        "  other: {kind: import_model, model: org/other, chat_template: names.jinja} #!\n  score:",
        "names.jinja:3 asks for 'mesages', which nothing defines (did you mean 'messages'?). Known: ",
        "add_generation_prompt",
    ),
    "a prompt with a placeholder that nothing fills in": case(
        "[sums/test]",
        '[{use: sums, template: "Solve {question}.\\nAnswer in {langage}."}] #!',
        "{langage} in its line 2, which nothing fills in. Known: {question}",
    ),
    "a prompt that is Jinja": case(
        "[sums/test]", '[{use: sums, template: "{{ question }}"}] #!', "nothing fills in (did you mean {question}?)"
    ),
    "an unknown chat template": case("    samples: 2", "    samples: 2\n    chat_template: chatmll #!", "'chatml'"),
    # Rewards.
    "unknown reward": case("use: think_format", "use: think_fromat #!\n        ", "did you mean 'think_format'"),
    "a misspelt grader": case(
        "- accuracy\n      - {use: think_format, weight: 0.1, gate: accuracy}",
        "- acuracy #!\n      - {use: think_format, weight: 0.1}",
        "did you mean 'accuracy'",
    ),
    "a reward's file that is not there": case('"rewards.py:brevity"', '"reward.py:brevity" #!', "reward.py"),
    "a reward that the file lacks": case('"rewards.py:brevity"', '"rewards.py:brevty" #!', "brevty", "brevity"),
    "a reward of one completion that logs": case(
        '"rewards.py:brevity"', '"rewards.py:logging" #!', "log_metric", "batch"
    ),
    "a requirement that asks for a trainer": case(
        "    samples: 4",
        '    samples: 4\n    require: ["rewards.py:scheduled"] #!',
        "rewards.py:scheduled",
        "trainer_state",
    ),
    "a reward that is a number": case('"rewards.py:brevity"', '"rewards.py:NUMBER" #!', "NUMBER"),
    "a reward's options": case(
        "weight: 0.1,", "options: {answr_tag: true}, #!\n         ", "no option", "did you mean 'answer_tag'"
    ),
    "a reward's option of another type": case(
        "weight: 0.1,", "options: {answer_tag: always}, #!\n         ", "answer_tag has to be bool, not 'always' (str)"
    ),
    "a reward's option of another value": case(
        "use: think_format,",
        "use: language, options: {scope: al}, #!\n       ",
        "scope is 'thought' or 'whole', not 'al'",
    ),
    "a reward's option out of range": case(
        "use: think_format,",
        "use: code, options: {memory_mb: -7}, #!\n       ",
        "memory_mb has to be greater than or equal to 1, not -7",
    ),
    "a grader's option out of range": case(
        "{use: arithmetic, options: {digits: 1}}",
        "{use: jsonl, options: {path: rows.jsonl, grader: code, grader_options: {timeout: 0}}} #!",
        "reward 'code': timeout has to be greater than 0, not 0",
    ),
    "a reward of all completions that says it returns one number": case(
        '"rewards.py:brevity"', '"rewards.py:mean" #!', "returns one float, by its annotation", "a list"
    ),
    "a task's option of another type": case("digits: 1}}", "digits: few}} #!", "digits has to be int, not 'few' (str)"),
    "a task's option of a type that it does not look at": case(
        "{use: arithmetic, options: {digits: 1}}",
        "{use: jsonl, options: {path: rows.jsonl, question: [prompt]}} #!",
        "question has to be str, not ['prompt'] (list)",
    ),
    "a grader's option of another type": case(
        "{use: arithmetic, options: {digits: 1}}",
        "{use: jsonl, options: {path: rows.jsonl, grader: math, grader_options: {lenient: 3}}} #!",
        "lenient has to be bool, not 3 (int)",
    ),
    "a reward without an option that it needs": case(
        "use: think_format,", "use: soft_overlong, #!\n       ", "'soft_overlong' needs 'max_tokens' and 'soft_tokens'"
    ),
    "a task's grader": case(
        "{use: arithmetic, options: {digits: 1}}",
        "{use: jsonl, options: {path: rows.jsonl, grader: mth}} #!",
        "no reward 'mth'",
        "did you mean 'math'",
    ),
    "a gate that comes later": case(
        "gate: accuracy", "gate: brevity #!\n        ", "not an earlier reward", "accuracy"
    ),
    "two rewards of one name": case('- "rewards.py:brevity"', "- accuracy #!", "two rewards", "'accuracy'"),
    "a reward for a task that the stage lacks": case(
        "gate: accuracy", "where: {task: sms} #!\n        ", "no task 'sms'", "did you mean 'sums'?"
    ),
    "a clip the wrong way round": case("gate: accuracy", "clip: [1.0, 0.0] #!\n        ", "[low, high]"),
    "a weight that is text": case("weight: 0.1", "weight: heavy #!\n         ", "weight", "number"),
    # The trainer.
    "unknown trainer field": case("learning_rate: 1.0e-4", "lerning_rate: 1.0e-4 #!", "did you mean 'learning_rate'"),
    "another trainer's field": case("num_train_epochs: 1", "num_generations: 8 #!\n             ", "SFTConfig"),
    "a trainer field that is text": case("learning_rate: 1.0e-4", "learning_rate: fast #!", "learning_rate", "float"),
    "a batch of nothing": case(
        "max_steps: 5", "max_steps: 5\n      gradient_accumulation_steps: 0 #!", "has to be 1 or more, not 0"
    ),
    "no step": case("max_steps: 5", "max_steps: 0 #!", "trainer.max_steps: has to be 1 or more, or left out"),
    "a negative learning rate": case("learning_rate: 1.0e-4", "learning_rate: -1.0e-4 #!", "0 or more, not -0.0001"),
    "no epoch": case("num_train_epochs: 1", "num_train_epochs: 0 #!\n             ", "has to be above 0, not 0"),
    "a trainer field that is a list": case("max_steps: 5", "max_steps: [5] #!", "max_steps", "int"),
    "a group that is text": case(
        "num_generations: 8", "num_generations: eight #!", "has to be int | None, not 'eight' (str)"
    ),
    "a save never": case("max_steps: 5", "save_steps: 0 #!", "has to be above 0, not 0"),
    "a rate that is no number": case("learning_rate: 1.0e-4", "learning_rate: .nan #!", "a finite number, not nan"),
    "an unknown key of a distillation": case(
        "  score:", "  pupil:\n    kind: distill\n    model: '@base'\n    learns: 3 #!\n  score:", "unknown key"
    ),
    "a model that no path can be": case('model: "@zero"', f"model: {'x' * 300} #!", "nor a hub id"),
    "data that no path can be": case("from: rows.jsonl", f"from: {'x' * 300} #!\n        ", "no file or folder"),
    "a trainer field of the stage": case("max_steps: 5", "max_completion_length: 64 #!", "rollout.max_tokens"),
    "a trainer field of ours": case("max_steps: 5", "resume_from_checkpoint: true #!", "resumes by itself"),
    "a loss that is not there": case("max_steps: 5", "loss_type: grop #!", "did you mean 'grpo'", "dr_grpo, dapo"),
    "another trainer's loss": case(
        "num_train_epochs: 1}", "num_train_epochs: 1, loss_type: grpo} #!", "no 'grpo'", "Known: nll, dft"
    ),
    "a schedule that is not there": case("max_steps: 5", "lr_scheduler_type: cosin #!", "did you mean 'cosine'"),
    "an optimizer that is not there": case("max_steps: 5", "optim: adam #!", "no 'adam'", "adamw_torch_fused"),
    "a sampler that is not there": case(
        "max_steps: 5", "train_sampling_strategy: randm #!", "did you mean 'random'", "group_by_length"
    ),
    "evaluations while training": case("max_steps: 5", "eval_strategy: steps #!", "no evaluation data", "evaluate"),
    "a schedule that follows evaluations": case(
        "max_steps: 5", "lr_scheduler_type: reduce_lr_on_plateau #!", "no evaluation data"
    ),
    # What does not go together.
    "greedy reinforcement": case("max_tokens: 32}", "max_tokens: 32, temperature: 0.0}", "temperature"),
    "greedy samples": case("    samples: 2", "    samples: 2\n    rollout: {temperature: 0.0}", "samples to 1"),
    "a way to keep weights that is none": case(
        "      max_steps: 5", "      max_steps: 5\n    keep: worst #!", "best, last or"
    ),
    "greedy rejection sampling": case(
        "    samples: 4", "    samples: 4\n    rollout: {temperature: 0.0}", "samples to 1"
    ),
    "greedy pass rates": case(
        "    kind: rejection_sample", "    kind: pass_rate\n    rollout: {temperature: 0.0}", "samples to 1"
    ),
    "model and models": case('    models: ["@zero"', '    model: "@zero"\n    models: ["@zero"', "one of the two"),
    "rows longer than the context": case("length: 32", "length: 512", "max_position_embeddings"),
    "no vocabulary": case("    vocabulary: {kind: words}\n", "", "vocabulary"),
    # How a stage is started.
    "an accelerate config that is not there": case(
        "    length: 32", "    length: 32\n    launch: {accelerate: none.yaml} #!", "none.yaml"
    ),
    "divided experts in FP8": case(
        "kind: sft", "kind: sft\n    launch: {accelerate: ep-1node}\n    precision: fp8 #!", "not multiplied in FP8"
    ),
    "experts divided by hand": case(
        "num_train_epochs: 1", "num_train_epochs: 1, model_init_kwargs: {distributed_config: {tp_size: 2}}", "ep-1node"
    ),
    "divided experts in reinforcement": case(
        "kind: grpo", "kind: grpo\n    launch: {accelerate: ep-1node} #!", "which only SFTTrainer can train"
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    marked = "{% for m in messages %}{% generation %}{% break %}{% endgeneration %}{% endfor %}"
    (tmp_path / "broken.jinja").write_text(f"{marked}\n\n{{{{ eos_token }}\n")
    (tmp_path / "filter.jinja").write_text(f"{marked}{{{{ eos_token | trimm }}}}")
    (tmp_path / "names.jinja").write_text(
        "{% if thinks is defined and thinks %}{{ bos_token }}{% endif %}{{ tone | default('') }}\n"
        "{% set first = messages[0] %}{% macro say(it) %}{{ it }}{% endmacro %}{{ say(first) }}\n{{ mesages }}"
    )
    (tmp_path / "corpus.py").write_text(CORPUS)
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n' * 20)
    return tmp_path


def broken(name: str) -> tuple[str, int | None]:
    """The recipe of a case, and the line that its message has to name."""
    change = CASES[name]
    assert GOOD.count(change.old) == 1, "a case changes one place"
    text = GOOD.replace(change.old, change.new)
    marked = [number for number, line in enumerate(text.splitlines(), 1) if "#!" in line]
    return text, marked[0] if marked else None


def test_the_recipe_is_right_before_it_is_broken(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    assert list(load(folder / "recipe.yaml").stages) == ["base", "zero", "samples", "taught", "score"]


def test_there_are_many_ways() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_one_clear_message(name: str, folder: Path) -> None:
    path = folder / "recipe.yaml"
    text, line = broken(name)
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load(path)
    message = str(error.value)
    assert len(error.value.issues) == 1, message
    assert str(path) in message
    if line is not None:
        assert f"{path}:{line}:" in message
    for words in CASES[name].says:
        assert words in message
    assert "Traceback" not in message
    assert "pydantic" not in message


def test_every_fault_is_reported_at_once(folder: Path) -> None:
    path = folder / "recipe.yaml"
    faults = ("unknown kind", "a dangling reference in a list", "unknown reward", "a trainer field that is text")
    text = GOOD
    for name in faults:
        text = text.replace(CASES[name].old, CASES[name].new)
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load(path)
    assert len(error.value.issues) == len(faults), str(error.value)
    assert {int(match) for match in re.findall(rf"{re.escape(str(path))}:(\d+):", str(error.value))} == {
        number for number, line in enumerate(text.splitlines(), 1) if "#!" in line
    }


OVERRIDES = {
    "no value": ("stages.zero.trainer.max_steps", "a.b.c=value"),
    "a misspelt key": ("stages.zero.trainer.max_step=3", "did you mean 'max_steps'"),
    "a misspelt stage": ("stages.zerro.trainer.max_steps=3", "zerro"),
    "a wrong type": ("stages.base.length=long", "integer"),
    "beyond a list's end": ("stages.score.tasks.5=sums", "no such place"),
    "through a number": ("seed.of.all=3", "no such place"),
    "no YAML": ("stages.base.length=[", "not YAML"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_is_checked_like_the_recipe(name: str, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    override, words = OVERRIDES[name]
    with pytest.raises(RecipeError) as error:
        load(folder / "recipe.yaml", [override])
    assert override in str(error.value)
    assert words in str(error.value)


def test_an_override_reaches_any_leaf(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    overrides = ["stages.zero.trainer.learning_rate=5e-7", "stages.zero.rewards.1.weight=0.5", "seed=9"]
    recipe = load(folder / "recipe.yaml", overrides)
    zero = recipe.stages["zero"]
    assert recipe.seed == 9
    assert zero.trainer["learning_rate"] == 5e-7
    assert zero.rewards[1].weight == 0.5


SHARED = """\
name: shared
stages:
  a: &a {kind: import_model, model: org/a, launch: &l {env: {A: "1"}}}
  b: {<<: *a, model: org/b, launch: *l}
"""


def test_what_an_alias_names_is_changed_in_one_place(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SHARED)
    stages = load(tmp_path / "recipe.yaml", ["stages.b.launch.env.A='2'"]).stages
    assert [(stage.model, stage.launch.env) for stage in stages.values()] == [
        ("org/a", {"A": "1"}),
        ("org/b", {"A": "2"}),
    ]


def test_a_file_in_another_encoding_is_told_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes("name: x\ndescription: grün\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"recipe.yaml:2: is not UTF-8: save the file as UTF-8"):
        load(tmp_path / "recipe.yaml")


def test_what_stands_in_defaults_is_told_once_for_all_stages(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD.replace("seed: 3", "defaults: {evaluate: {sample: 2}, sft: {seed: x}}"))
    with pytest.raises(RecipeError) as told:
        load(folder / "recipe.yaml", ["stages.again={kind: evaluate, model: '@zero', tasks: [sums/test]}"])
    assert [issue.loc for issue in told.value.issues] == ["defaults.sft.seed", "defaults.evaluate.sample"]
    assert {issue.where for issue in told.value.issues} == {f"{folder / 'recipe.yaml'}:2"}


def test_an_alias_within_what_it_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: knot\nstages: &a {b: *a}\n")
    with pytest.raises(RecipeError, match="an alias stands within what it names"):
        load(tmp_path / "recipe.yaml")


def test_a_recipe_that_is_not_there_is_told_from_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match="did you mean 'nano/r1'"):
        load("nano/r2")


def test_broken_recipes_are_answered_without_torch(folder: Path) -> None:
    """All of them in one fresh process: quick, and nothing heavy is imported on the way."""
    for number, name in enumerate(CASES):
        (folder / f"{number}.yaml").write_text(broken(name)[0])
    script = (
        "import json, sys, time\n"
        "start = time.process_time()\n"
        "from pipeline.recipe import RecipeError, load\n"
        f"for number in range({len(CASES)}):\n"
        "    try:\n"
        "        load(f'{number}.yaml')\n"
        "    except RecipeError:\n"
        "        pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'vllm', 'datasets', 'accelerate', 'matplotlib'} & set(sys.modules)\n"
        "print(json.dumps([time.process_time() - start, sorted(heavy)]))\n"
    )
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    seconds, heavy = json.loads(done.stdout)
    assert heavy == []
    assert seconds / len(CASES) < SECONDS


def test_the_command_says_it_and_ends_with_2(folder: Path) -> None:
    text, line = broken("unknown trainer field")
    (folder / "recipe.yaml").write_text(text)
    command = [str(Path(sys.executable).parent / "zero2r1"), "run", "recipe.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"recipe.yaml:{line}: stages.zero.trainer.lerning_rate:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()
