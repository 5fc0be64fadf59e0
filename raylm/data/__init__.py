"""Text to tokens: the Hugging Face Hub, text sources, tokenizers, the tokenized corpus and its cache."""
