"""Foreign models: what is taken, what is mended, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Outputs
from pipeline.stages.registry import run_function
from tests.stages.driving import TINY, context_of


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of another family, whose tokenizer ends with a token that its chat template never writes."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from pipeline.data.vocabulary import VocabularySpec, build

    folder = tmp_path_factory.mktemp("foreign")
    tokenizer = build(VocabularySpec(kind="bpe", size=300, chat_template="chatml"), ["some text to learn bytes from"])
    tokenizer.eos_token = "<eos>"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def bring(folder: Path, model: Path | str, **options: Any) -> tuple[Path, Outputs]:
    context = context_of(folder, "imported", {"kind": "import_model", "model": str(model), **options}, {})
    outputs = run_function("import_model")(context)
    return context.output / "model", outputs


def state(folder: Path | str, **options: Any) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(folder, **options).state_dict())


def assert_same_weights(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert weight.equal(other[name].to(weight.dtype)), name


def test_a_turn_ends_with_what_the_chat_template_writes(tmp_path: Path, foreign: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    model, outputs = bring(tmp_path, foreign)
    tokenizer, before = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(foreign)
    assert (before.eos_token, tokenizer.eos_token) == ("<eos>", "<|im_end|>")
    assert GenerationConfig.from_pretrained(model).eos_token_id == [tokenizer.eos_token_id, before.eos_token_id]
    assert json.loads((model / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert outputs.metrics["end_of_turn"] == "<|im_end|>"
    assert_same_weights(state(foreign), state(model))
    assert outputs.metrics["parameters"] == sum(weight.numel() for weight in state(foreign).values())


def test_the_source_is_left_as_it_was_and_may_go(tmp_path: Path, foreign: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(foreign, source)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    model, _ = bring(tmp_path, source)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    (source / "model.safetensors").write_bytes(b"overwritten in place")
    shutil.rmtree(source)
    assert_same_weights(state(foreign), state(model))


def test_code_and_pickles_stay_behind(tmp_path: Path, foreign: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(foreign, source)
    for name in ("modeling_evil.py", "optimizer.pt", "training_args.bin", "notes.pdf"):
        (source / name).write_text("x")
    model, _ = bring(tmp_path, source)
    assert {path.suffix for path in model.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_weights_in_pickles_are_converted(tmp_path: Path, foreign: Path) -> None:
    import torch

    source = tmp_path / "source"
    shutil.copytree(foreign, source)
    (source / "model.safetensors").unlink()
    torch.save(state(foreign), source / "pytorch_model.bin")
    model, outputs = bring(tmp_path, source)
    assert_same_weights(state(foreign), state(model))
    assert outputs.metrics["dtype"] == "F32"


def test_a_precision_is_converted(tmp_path: Path, foreign: Path) -> None:
    model, outputs = bring(tmp_path, foreign, dtype="bfloat16")
    assert outputs.metrics["dtype"] == "BF16"
    assert_same_weights(state(model), state(foreign))


def test_a_converted_deepseek_v3_keeps_its_prediction_blocks(tmp_path: Path, foreign: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from model import factory, presets

    shape = presets.load({**TINY, "num_nextn_predict_layers": 1})
    source = tmp_path / "source"
    shutil.copytree(foreign, source)
    factory.build(shape, 400, eos_token_id=1, pad_token_id=0, seed=0).save_pretrained(source)
    before = load_file(source / "model.safetensors")
    assert any("eh_proj" in name for name in before)

    model, _ = bring(tmp_path, source, dtype="bfloat16")
    after = load_file(model / "model.safetensors")
    assert after.keys() == before.keys()
    for name, weight in before.items():
        kept = torch.float32 if "e_score_correction_bias" in name else torch.bfloat16
        assert after[name].equal(weight.to(kept)), name


def test_a_chat_template_of_ours_or_of_a_file_is_set(tmp_path: Path, foreign: Path) -> None:
    from transformers import AutoTokenizer

    model, _ = bring(tmp_path, foreign, chat_template="r1_zero")
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "User: hi\nAssistant:\nho<eos>\n"
    (tmp_path / "own.jinja").write_text("{% for m in messages %}[{{ m['content'] }}<|im_end|>{% endfor %}")
    shutil.rmtree(tmp_path / "imported")
    model, _ = bring(tmp_path, foreign, chat_template="own.jinja")
    assert AutoTokenizer.from_pretrained(model).apply_chat_template(chat, tokenize=False).startswith("[hi<|im_end|>")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "never ends the assistant's turn"),
        ("{% for m in messages %}{{ m['content'] }} stop{% endfor %}", "not a special token"),
    ],
)
def test_a_template_that_ends_no_turn_is_refused(tmp_path: Path, foreign: Path, template: str, message: str) -> None:
    (tmp_path / "own.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        bring(tmp_path, foreign, chat_template="own.jinja")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no model"):
        bring(tmp_path, tmp_path / "empty")


def test_gguf_gives_back_the_weights_and_the_ends_of_the_file(tmp_path: Path, foreign: Path) -> None:
    from transformers import AutoTokenizer

    pytest.importorskip("gguf")
    write_gguf(foreign, tmp_path / "tiny.gguf")
    model, outputs = bring(tmp_path, tmp_path / "tiny.gguf", dtype="float32")
    assert_same_weights(state(foreign), state(model))
    tokenizer, original = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(foreign)
    assert tokenizer.eos_token == "<|im_end|>" == outputs.metrics["end_of_turn"]
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer("some bytes").input_ids == original("some bytes").input_ids


def write_gguf(folder: Path, path: Path) -> None:
    """Write a Qwen2 model as GGUF by the format's own library: names and fields as llama.cpp's converter gives them."""
    import gguf
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in bpe["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for n in range(len(tokenizer))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<eos>"))
    writer.add_eos_token_id(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in state(folder).items():
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
