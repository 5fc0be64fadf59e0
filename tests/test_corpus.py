"""Text: what the tokenised corpora looked like before, pieces that are as good as the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pydoc_data.topics import topics

import pytest

from raylm import corpus, tokenizer
from raylm.corpus import detokenize_wikitext


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (" = Homarus gammarus = \n", "= Homarus gammarus ="),
        (" = = = Early life = = = \n", "=== Early life ==="),
        ("", ""),
        (" up to 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 lb ) . \n", "up to 0.7 – 2.2 kg (1.5 lb)."),
        (" 20 @,@ 000 well @-@ known <unk> , he said : ", "20,000 well-known <unk>, he said:"),
        (' only becoming " lobster red " on cooking . ', 'only becoming "lobster red" on cooking.'),
        (" it 's the lobsters ' claws , didn 't we ? ", "it's the lobsters' claws, didn't we?"),
        (" ( <unk> ) [ 1 ] 5 % of $ 3 ", "(<unk>) [1] 5% of $3"),
    ],
)
def test_wikitext_is_detokenised(row: str, text: str) -> None:
    assert detokenize_wikitext(row) == text


def test_wikitext_counts_a_word_per_line() -> None:
    split = corpus._wikitext(["", " = A = \n", " b , c \n"])
    assert split.words == 6 + 3
    assert "".join(split.pieces) == "\n= A =\nb, c\n"
    assert not split.documents


def test_imdb_is_shuffled_and_split_nine_to_one() -> None:
    reviews = [f"review {number}" for number in range(50)]
    train, validation = corpus._imdb(reviews)
    assert (len(train.pieces), len(validation.pieces)) == (45, 5)
    assert sorted([*train.pieces, *validation.pieces]) == sorted(reviews)
    assert list(train.pieces) != reviews[:45]
    assert corpus._imdb(reviews)[0].pieces == train.pieces


def test_pieces_give_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(topics[name] for name in sorted(topics)[:12])
    spoken = tokenizer.train([text])
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 500)
    split = corpus._lines(text.split("\n"), words=0)
    assert len(split.pieces) > 20
    pieces = [token for ids in tokenizer.encode(spoken, list(split.pieces)) for token in ids]
    assert pieces == tokenizer.encode(spoken, ["".join(split.pieces)])[0]


def test_training_a_tokenizer_is_deterministic() -> None:
    text = [topics[name] for name in sorted(topics)[:20]]
    assert tokenizer.files(tokenizer.train(text)) == tokenizer.files(tokenizer.train(text))


PREPARE = """
import json, sys
from raylm import data, models
corpora = {name: data.prepare(name, models.locate("gpt2", pretrained=False).files(), "gpt2") for name in sys.argv[1:]}
print(json.dumps({
    name: [len(one.train.tokens), one.validation.words, len(one.validation.tokens), one.vocabulary, one.end_of_text]
    for name, one in corpora.items()
}))
"""


def test_real_corpora_have_the_reference_tables_ratio(hub_environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", PREPARE, "wikitext2", "imdb"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=hub_environment)
    sizes = json.loads(done.stdout)
    train, words, tokens, vocabulary, end_of_text = sizes["wikitext2"]
    assert words == 217_646
    assert tokens / words == pytest.approx(1.119, abs=0.003)
    assert 2_250_000 < train < 2_400_000
    assert (vocabulary, end_of_text) == (50257, 50256)
    _, words, tokens, _, _ = sizes["imdb"]
    assert 1.27 < tokens / words < 1.30  # of the stand-in's 7,500 reviews; 1.284 to 1.291 on all of them


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("nobody/nothing", ["dataset nobody/nothing", "not found"]),
        ("Salesforce/wikitext", ["dataset Salesforce/wikitext", "onfig"]),
        ("Salesforce/wikitext:wikitext-9", ["wikitext-9"]),
        ("wikitext103", ["dataset wikitext103", "no train split", "validation"]),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_a_line(
    hub_environment: dict[str, str], dataset: str, words: list[str]
) -> None:
    code = "import sys\nfrom raylm import data\nfrom raylm.errors import UserError\n" + (
        "try:\n    data.prepare(sys.argv[1], None, 'gpt2-nano')\nexcept UserError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code, dataset]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=hub_environment)
    assert len(done.stdout.splitlines()) == 1
    assert all(word in done.stdout for word in words), done.stdout
