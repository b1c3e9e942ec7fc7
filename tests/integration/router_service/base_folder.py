"""A base model's folder as far as the router service reads it: tokenizer and configuration, no weights."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXTS = {
    "math": "3 + 4 = 7. Tom has 12 apples and buys 5 more. How many apples does he have? 12 + 5 = 17. ",
    "code": "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, i))\n",
    "story": "Once upon a time there was a little girl who lived in a house near the dark old forest. ",
}
GENERIC = "The one two three four five six seven eight and so on, or nothing of that kind at all. "


def write_base_folder(folder: Path) -> Path:
    """A byte-level BPE tokenizer of 400 tokens, trained on the texts, and a configuration."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS.values(), GENERIC], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": backend.get_vocab_size(), "max_position_embeddings": 256, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder
