"""Prepare datasets with GPT-2's tokenizer; print the sizes of each as JSON. Arguments: datasets."""

import json
import sys

from raylm.config.dataset import DatasetSpec
from raylm.data.preparation import prepare
from raylm.training import models

tokenizer_folder = models.resolve_model("gpt2", pretrained=False).fetch_files()
sizes = {}
for dataset in sys.argv[1:]:
    corpus = prepare(DatasetSpec(dataset), tokenizer_folder, "gpt2")
    sizes[dataset] = {
        "train_tokens": len(corpus.train.tokens),
        "validation_tokens": len(corpus.validation.tokens),
        "validation_words": corpus.validation.num_words,
        "vocab_size": corpus.vocab_size,
        "eos_token_id": corpus.eos_token_id,
    }
print(json.dumps(sizes))
