"""Random tokenizers, models and settings of a trial: losses of transformers and torch alone, or one line."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from fuzz_trials import (
    LEARNING_RATE,
    Texts,
    assert_equal,
    encode,
    expected_losses,
    fuzz,
    load_folder,
    load_tokenizer,
    temporary_folder,
    train,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TRAINED_ON = topics["lambda"] + topics["integers"] + topics["break"]
LINES = (topics["while"] + "naïve 的一是不 <s> </s> 🙂 don't  \t12345\n" + topics["pass"]).splitlines(keepends=True)
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]
NORMALIZERS = {
    "none": None,
    "lower": normalizers.Lowercase(),
    "nfkc": normalizers.NFKC(),
    "nfd": normalizers.NFD(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "sentence piece": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "strip": normalizers.Strip(),
}
PRE_TOKENIZERS = {
    "none": None,
    "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "byte level with a space": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "words": pre_tokenizers.Whitespace(),
    "metaspace": pre_tokenizers.Metaspace(prepend_scheme="always"),
    "metaspace first": pre_tokenizers.Metaspace(prepend_scheme="first"),
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]),
    "bert": pre_tokenizers.BertPreTokenizer(),
}


def build_tokenizer(kind: str, normalizer: str, pre_tokenizer: str, size: int) -> Tokenizer:
    """Return a tokenizer that is trained on documentation."""
    model: Any
    trainer: Any
    options: dict[str, Any] = {"vocab_size": size, "special_tokens": SPECIAL_TOKENS, "show_progress": False}
    if kind == "bpe":
        model, trainer = models.BPE(unk_token="<unk>"), trainers.BpeTrainer(**options, max_token_length=12)
    elif kind == "bytes":
        model = models.BPE()
        trainer = trainers.BpeTrainer(**options, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        pre_tokenizer = "byte level"
    elif kind == "words":
        model, trainer = models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(**options)
    elif kind == "word pieces":
        model, trainer = models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(**options)
    else:
        model, trainer = (
            models.Unigram(),
            trainers.UnigramTrainer(**{**options, "vocab_size": size + 60}, unk_token="<unk>"),
        )
    tokenizer = Tokenizer(model)
    if NORMALIZERS[normalizer] is not None:
        tokenizer.normalizer = NORMALIZERS[normalizer]
    if PRE_TOKENIZERS[pre_tokenizer] is not None:
        tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre_tokenizer]
    if kind == "bytes":
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TRAINED_ON.split("\n"), trainer)
    return tokenizer


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "Llama": {**SMALL, "num_key_value_heads": 1},
    "Qwen2": {**SMALL, "num_key_value_heads": 2},
    "Gemma": {**SMALL, "num_key_value_heads": 1, "head_dim": 8},
    "GPTNeoX": SMALL,
    "OPT": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "dropout": 0.0}
    | {"word_embed_proj_dim": 16},
    "Phi": {**SMALL, "num_key_value_heads": 2},
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}


def save_model(folder: Path, family: str, vocab_size: int, dtype: torch.dtype, **options: Any) -> None:
    """Write a tiny model of a family with random weights."""
    transformers.logging.set_verbosity_error()
    sizes = {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**{**FAMILIES[family], **sizes, **options})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)


def write_texts(folder: Path) -> tuple[Path, Texts]:
    """Write a stream of text; return its path and the text of its splits."""
    path = folder / "data.txt"
    path.write_bytes("".join(LINES).encode())
    number = max(1, len(LINES) // 10)
    return path, Texts(LINES[:-number], LINES[-number:], is_documents=False)


def check(folder: Path, trial: dict[str, Any], reason: str | None) -> None:
    """Train a model in `folder / "model"`; compare it with transformers alone, or the message with its reason."""
    path, texts = write_texts(folder)
    trial = {"dataset": str(path), "model": str(folder / "model"), "context_length": 8, "batch_size": 8, **trial}
    trial = {"learning_rate": LEARNING_RATE, **trial}
    stride = trial["context_length"] - 1
    trial["max_train_tokens"] = max(stride, trial["batch_size"] * stride - 2)  # the last window is shorter
    found = train(folder, **trial)
    if reason is not None:
        assert isinstance(found, str) and reason in found, found
        return
    file = folder / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"].pop("dropout", None)  # with it, tokens are other ones each time
    file.write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder / "model")
    if tokenizer.eos_token_id is None:
        eos_token_id = json.loads((folder / "model" / "config.json").read_text())["eos_token_id"]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos_token_id)
    if len(encode(tokenizer, texts.train, is_documents=False)) < stride:
        assert isinstance(found, str) and "context_length 8 needs at least" in found
        return
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    load = load_folder(folder / "model") if trial.get("pretrained", True) else random_weights(folder, trial)
    assert_equal(found, expected_losses(trial, texts, tokenizer, load, eos if bos is None else bos))


def random_weights(folder: Path, trial: dict[str, Any]) -> Any:
    """Return a function that makes a model with the random weights of the trial's seed."""

    def load() -> PreTrainedModel:
        config = transformers.AutoConfig.from_pretrained(folder / "model")
        torch.manual_seed(trial.get("seed", 0))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model

    return load


@fuzz(60)
@given(
    kind=st.sampled_from(["bpe", "bytes", "words", "word pieces", "unigram"]),
    normalizer=st.sampled_from(["none", "none", "none", *NORMALIZERS]),
    pre_tokenizer=st.sampled_from(sorted(PRE_TOKENIZERS)),
    size=st.integers(40, 400),
    eos=st.sampled_from(["tokenizer", "tokenizer", "config", "none"]),
    bos=st.sampled_from([None, "<s>", "</s>"]),
    added=st.lists(st.sampled_from(["the", "  ", "def ", "的", "<|x|>"]), max_size=2, unique=True),
    options=st.sets(
        st.sampled_from(
            ["template", "truncation", "padding", "short model", "padded model", "no unk", "hole", "dropout"]
        )
    ),
)
def test_tokenizer_gives_the_tokens_of_transformers_or_is_refused(
    kind: str,
    normalizer: str,
    pre_tokenizer: str,
    size: int,
    eos: str,
    bos: str | None,
    added: list[str],
    options: set[str],
) -> None:
    tokenizer = build_tokenizer(kind, normalizer, pre_tokenizer, size)
    content = json.loads(tokenizer.to_str())
    if "hole" in options and isinstance(vocabulary := content["model"]["vocab"], dict):
        vocabulary[max(vocabulary, key=vocabulary.__getitem__)] += 300
    if "dropout" in options and content["model"]["type"] == "BPE":
        content["model"]["dropout"] = 0.5
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    if "template" in options:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    if "truncation" in options:
        tokenizer.enable_truncation(max_length=5)
    if "padding" in options:
        tokenizer.enable_padding(length=64, pad_id=0, pad_token="<pad>")
    names = {} if "no unk" in options else {"unk_token": "<unk>"}
    names |= {"eos_token": "</s>"} if eos == "tokenizer" else {}
    names |= {"bos_token": bos} if bos else {}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    with temporary_folder() as folder:
        needed = max(wrapped.get_vocab().values()) + 1
        vocab_size = needed + (40 if "padded model" in options else -1 if "short model" in options else 0)
        save_model(folder / "model", "GPT2", vocab_size, torch.float32, n_positions=16)
        file = folder / "model" / "config.json"
        eos_token_id = 2 if eos == "config" else None
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": eos_token_id}))
        wrapped.save_pretrained(folder / "model")
        reason = f"has {needed} tokens, the model only {vocab_size}" if vocab_size < needed else None
        check(folder, {}, "no end-of-text token" if eos == "none" else reason)


@fuzz(60)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
    tied=st.sampled_from([None, True, False]),
    padding=st.sampled_from([0, 1, 60]),
    trial=st.fixed_dictionaries(
        {},
        optional={
            "context_length": st.integers(2, 16),
            "batch_size": st.integers(1, 12),
            "optimizer": st.just("adamw"),
            "lr_schedule": st.sampled_from(["linear", "cosine", "constant"]),
            "warmup_ratio": st.floats(0, 1),
            "weight_decay": st.floats(0, 1),
            "max_grad_norm": st.sampled_from([0.0, 0.01, 1.0, 1e6]),
            "seed": st.integers(0, 2**32 - 1),
            "pretrained": st.booleans(),
            "evals_per_epoch": st.integers(1, 1000),
        },
    ),
)
def test_first_step_of_any_trial_equals_transformers(
    family: str, dtype: torch.dtype, tied: bool | None, padding: int, trial: dict[str, Any]
) -> None:
    tokenizer = build_tokenizer("bytes", "none", "byte level", 300)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    options = {} if tied is None else {"tie_word_embeddings": tied}
    with temporary_folder() as folder:
        save_model(folder / "model", family, len(wrapped) + padding, dtype, **options)
        wrapped.save_pretrained(folder / "model")
        loaded, vocab_size = load_tokenizer(folder / "model"), len(wrapped) + padding
        is_short = vocab_size < len(loaded)  # Qwen's class adds a token of its own
        check(folder, trial, f"has {len(loaded)} tokens, the model only {vocab_size}" if is_short else None)
