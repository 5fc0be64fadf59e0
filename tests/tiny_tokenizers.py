"""Tokenizers of several kinds, trained on a text in the test, and tiny models for them."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "".join(topics[name] for name in sorted(topics)[:40])
"""Real text that the tokenizers are trained on."""
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]


def _wrap(tokenizer: Tokenizer, *, bos: str | None = "<s>") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def byte_level(*, bos: str | None = "<s>", vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE, as GPT-2's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet)
    )
    return _wrap(tokenizer, bos=bos)


def sentence_piece_bpe() -> PreTrainedTokenizerFast:
    """Return a BPE without pre-tokenization that puts a space in front of each text, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    words = [f"{word} " for word in TEXT.split(" ")]  # merges within words only
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL_TOKENS, max_token_length=16)
    tokenizer.train_from_iterator(words, trainer)
    return _wrap(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """Return a unigram model with a space in front of each text, as XLNet's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=SPECIAL_TOKENS, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT.split("\n"), trainer)
    return _wrap(tokenizer)


def word_level() -> PreTrainedTokenizerFast:
    """Return a tokenizer that turns most words into <unk>, and all letters into small ones."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([TEXT], trainers.WordLevelTrainer(vocab_size=60, special_tokens=SPECIAL_TOKENS))
    return _wrap(tokenizer)


TOKENIZERS = {
    "byte level": byte_level,
    "sentence piece": sentence_piece_bpe,
    "unigram": unigram,
    "words": word_level,
}


def save_llama(folder: Path, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Write a tiny Llama with random weights and a tokenizer; None: without tokenizer files."""
    vocab_size = 400 if tokenizer is None else len(tokenizer)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.set_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
