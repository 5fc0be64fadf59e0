"""Tokenizers: loaded from a model's files, or trained on a corpus, and checked."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raylm.config.catalog import NANO_VOCAB_SIZE, read_model_config
from raylm.data.encoding import WORD_STARTS
from raylm.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raylm.data.corpus import Tokens


END_OF_TEXT = "<|endoftext|>"
MAX_TRAIN_CHARACTERS = 20_000_000
"""Most text of the train split that a byte-level BPE is trained on; more does not change its merges."""
MAX_DISTINCT_CHARACTERS = 8_000_000
"""Most characters of different words that it is trained on, which its time depends on: a text has a fifth of it."""
PART_CHARACTERS = 100_000
"""Characters after which a text is divided for training."""
MAX_PART_CHARACTERS = 1_000_000
"""Longest part, if a text has no place to divide it."""
_LONG_WORD = re.compile(r"\w{1000}|[^\w\s]{10000}")
"""Run of letters and digits, as in DNA, or of signs, that is trained on in parts."""
_AFTER_LETTERS = re.compile(r"(?<=[^\W\d])(?=[\W\d])|(?<=\d)(?=\D)")
"""Places between two words of the byte-level BPE that no space divides: its words have letters, digits or others."""
FILE_PATTERNS = ("tokenizer.json", "*.model", "vocab.*", "merges.txt", "vocab-*", "*.tiktoken", "tekken.json")
"""Names of files that hold the tokens of a tokenizer."""
PROBE_TEXT = "The tokens of a text give the text again."


def load(folder: Path, model: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a model's folder.

    Raises:
        UserError: if the folder has none, or it has no tokens or no end-of-text token. (Without tokenizer files,
            transformers silently returns an empty or generic tokenizer.)
    """
    from transformers import AutoTokenizer

    if not any(next(folder.glob(pattern), None) for pattern in FILE_PATTERNS):
        advice = "copy those of the model it was trained from into it"
        raise UserError(f"model {model}: has no tokenizer files, as tokenizer.json; {advice}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        ids = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    except Exception as error:  # each kind of tokenizer raises its own
        problem = _missing_package(folder) or one_line(error)
        raise UserError(f"model {model}: its tokenizer cannot be loaded: {problem}") from error
    if not ids:
        advice = "copy the tokenizer files of the model it was trained from into it"
        raise UserError(f"model {model}: its tokenizer has no tokens for {PROBE_TEXT!r}; {advice}")
    _remove_dropout(tokenizer)
    _set_end_of_text(tokenizer, folder)
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {model}: its tokenizer has no end-of-text token; expected one in tokenizer_config.json")
    return tokenizer


def _remove_dropout(tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove the dropout of a BPE, with which the same text has other tokens each time."""
    bpe: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(bpe, "dropout", None) is not None:
        bpe.dropout = None


def _missing_package(folder: Path) -> str:
    """Return the advice to install the package that reads a folder's tokenizer; an empty string if it is there."""
    needs_sentencepiece = not (folder / "tokenizer.json").exists() and any(folder.glob("*.model"))
    if needs_sentencepiece and importlib.util.find_spec("sentencepiece") is None:
        return "it is a SentencePiece model; install its package with `pip install sentencepiece`"
    return ""


def _set_end_of_text(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Take the end-of-text token from the model's config.json if the tokenizer names none."""
    number = (read_model_config(folder) or {}).get("eos_token_id")
    if tokenizer.eos_token_id is None and isinstance(number, int) and 0 <= number < len(tokenizer):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(number)


def vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of embeddings that a model needs for all tokens: ids may have gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


def own_start_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that texts begin with, if it is not the one that they end with; None otherwise.

    Llama and Gemma have seen it at the beginning of every text, and predict badly without it. GPT-2, OPT, Pythia and
    Qwen have none.
    """
    number = tokenizer.bos_token_id
    return number if isinstance(number, int) and number != tokenizer.eos_token_id else None


def unknown_share(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> float:
    """Return the part of tokens, from 0 to 1, that stand for text which the tokenizer does not know."""
    number = tokenizer.unk_token_id
    if number is None or number in (tokenizer.eos_token_id, tokenizer.bos_token_id) or len(tokens) == 0:
        return 0.0
    return float(np.count_nonzero(tokens == number)) / len(tokens)


def is_lossless(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Return whether the tokens of a text give the text again, up to white space and Unicode's compatible forms."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(decoded, str)
    return _normalize(decoded) == _normalize(text)


def _normalize(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


# ---- training -----------------------------------------------------------------------------------------------------


def train(texts: Iterable[Iterable[str]]) -> tuple[PreTrainedTokenizerBase, bool]:
    """Train a byte-level BPE like GPT-2's, with 4,096 tokens (fewer on a tiny corpus).

    Args:
        texts: documents or a stream, each in parts.

    Returns:
        The tokenizer, and whether words were left out or divided to bound its time.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe, limiter = ByteLevelBPETokenizer(), _TextLimiter()
    bpe.train_from_iterator(
        limiter.limit(texts), vocab_size=NANO_VOCAB_SIZE, special_tokens=[END_OF_TEXT], show_progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "tokenizer.json"))
        bpe.save(file)
        return PreTrainedTokenizerFast(
            tokenizer_file=file, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
        ), limiter.has_limited_words


class _TextLimiter:
    """Beginning of texts that a tokenizer is trained on in bounded time and memory."""

    def __init__(self) -> None:
        self.has_limited_words = False
        """True if words were left out or divided."""
        self._words: set[str] = set()
        self._distinct_characters = 0

    def limit(self, texts: Iterable[Iterable[str]]) -> Iterator[str]:
        """Yield parts of texts up to the limits."""
        remaining = MAX_TRAIN_CHARACTERS
        for part in (part for text in texts for part in self._divide_words(self._divide(text))):
            if remaining <= 0:
                return
            if not self._has_room(part):
                self.has_limited_words = True
                return
            yield part[:remaining]
            remaining -= len(part)

    def _divide(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield a text in parts of about `PART_CHARACTERS`.

        It is cut between words, which changes no count of a word, so that a tokenizer is that of the whole text; or, if
        it has none, within a word.
        """
        text = ""
        for piece in pieces:
            text += piece
            start = 0
            while len(text) - start > PART_CHARACTERS + 1:
                end = self._find_end(text, start)
                if end is None:
                    break
                yield text[start:end]
                start = end
            text = text[start:]
        yield text

    def _divide_words(self, parts: Iterable[str]) -> Iterator[str]:
        """Yield parts, divided within their long words: the time of training grows with the length of a word."""
        for part in parts:
            start = 0
            for match in _LONG_WORD.finditer(part):
                self.has_limited_words = True
                yield part[start : match.end()]
                start = match.end()
            yield part[start:]

    def _find_end(self, text: str, start: int) -> int | None:
        """Return the end of the part that begins at a position; None if more text is needed to find it."""
        for pattern in (WORD_STARTS, _AFTER_LETTERS):
            if match := pattern.search(text, start + PART_CHARACTERS, len(text) - 1):
                return match.start()
        if len(text) - start < MAX_PART_CHARACTERS:
            return None
        return start + MAX_PART_CHARACTERS  # within a long word, or a long run of signs

    def _has_room(self, text: str) -> bool:
        """Count the characters of the words that are new; return False once they are too many."""
        new = set(text.split()) - self._words
        self._words |= new
        self._distinct_characters += sum(map(len, new))
        return self._distinct_characters <= MAX_DISTINCT_CHARACTERS


# ---- identity -----------------------------------------------------------------------------------------------------


def serialize_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files that `save_pretrained` writes, by name; they are small enough to be sent with the tokens."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def compute_fingerprint(tokenizer_files: dict[str, bytes]) -> str:
    """Return a hash of a tokenizer's files; tokenizers with equal hashes give equal tokens."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer_files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
