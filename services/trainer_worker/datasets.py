"""From training examples to blocks of token ids. Numpy only, no torch.

Every token is a target exactly once, except each document's first, which nothing precedes. Documents
packed into one block keep their own positions, which start at 0, and that is how attention tells them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from services.shared.errors import InvalidDataset
from services.shared.training_plan import held_out_indices, pack, piece_starts

if TYPE_CHECKING:
    from services.shared.training_text import Example

IGNORED = -100
"""Label of a token that is not learned (the value that torch's cross entropy ignores)."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """One row of a batch: `token_ids_T`, `labels_T` and `positions_T` of equal length."""

    token_ids_T: Ids
    labels_T: Ids
    positions_T: Ids

    @property
    def num_targets(self) -> int:
        """How many tokens the loss counts."""
        return int((self.labels_T != IGNORED).sum())


@dataclass(frozen=True)
class Document:
    """One tokenised example: its ids and, per token, whether it is learned."""

    token_ids_T: Ids
    learned_T: npt.NDArray[np.bool_]


def make_blocks(  # noqa: PLR0913
    examples: "Sequence[Example]",
    tokenizer: Any,
    *,
    max_length: int,
    packing: bool,
    completion_only: bool,
    last_turn_only: bool = False,
    seed: int,
) -> list[Block]:
    """Blocks of at most `max_length` tokens, in an order fixed by `seed`; without packing, one piece to a block.

    Raises InvalidDataset when nothing is left to learn.
    """
    documents = tokenise(examples, tokenizer, completion_only=completion_only, last_turn_only=last_turn_only)
    pieces = [piece for document in documents for piece in _pieces(document, max_length) if piece.num_targets]
    if not pieces:
        raise InvalidDataset(
            f"None of the {len(examples)} examples has a token to learn: texts need at least two tokens"
            + (
                ", completions must not be empty, and an assistant's turns must be told apart by the chat template "
                "(it may mark them with {% generation %})."
                if completion_only
                else "."
            )
        )
    order = np.random.default_rng(seed).permutation(len(pieces))
    shuffled = [pieces[index] for index in order]
    if not packing:
        return shuffled
    groups = pack([len(piece.token_ids_T) for piece in shuffled], max_length)
    return [_joined([shuffled[member] for member in members]) for members in groups]


def split_examples(
    examples: "Sequence[Example]", *, fraction: float, seed: int
) -> "tuple[list[Example], list[Example]]":
    """Training and validation examples, at least one each; which is which depends on `seed` alone."""
    held_out = held_out_indices(len(examples), fraction=fraction, seed=seed)
    train = [example for index, example in enumerate(examples) if index not in held_out]
    validation = [example for index, example in enumerate(examples) if index in held_out]
    return train, validation


def tokenise(
    examples: "Sequence[Example]", tokenizer: Any, *, completion_only: bool = False, last_turn_only: bool = False
) -> list[Document]:
    """Each example as a document: begin-of-text where the tokenizer uses one, the text, end-of-text if there is one.

    With `completion_only` its completions are learned, all of them or the last: every token with a character in one.
    """
    if not examples:
        return []
    begin, end = _begin_id(tokenizer), tokenizer.eos_token_id
    encoded = tokenizer(
        [example.text for example in examples],
        add_special_tokens=False,
        return_offsets_mapping=completion_only,
        return_attention_mask=False,
        verbose=False,
    )
    documents = []
    for row, example in enumerate(examples):
        ids = list(encoded["input_ids"][row])
        learned = [True] * len(ids)
        if completion_only and example.completions is not None:
            spans = example.completions[-1:] if last_turn_only else example.completions
            learned = [
                any(start < last and stop > first for first, last in spans)
                for start, stop in encoded["offset_mapping"][row]
            ]
        documents.append(_framed(ids, learned, begin, end))
    return documents


def _framed(ids: list[int], learned: list[bool], begin: int | None, end: int | None) -> Document:
    """With the begin and end tokens, unless the text (a chat template's, say) has them already."""
    if begin is not None and ids[:1] != [begin]:
        ids, learned = [begin, *ids], [False, *learned]
    if end is not None and ids[-1:] != [end]:
        # A text ends where its last word does: whoever learns that learns this.
        ids, learned = [*ids, end], [*learned, learned[-1] if learned else True]
    return Document(np.array(ids, dtype=np.int64), np.array(learned, dtype=np.bool_))


def _begin_id(tokenizer: Any) -> int | None:
    """The id that the tokenizer itself puts before a text, if any."""
    begin: int | None = tokenizer.bos_token_id
    return begin if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else None


def _pieces(document: Document, max_length: int) -> list[Block]:
    """The document in pieces that overlap by one token: the first of each is a target of the piece before."""
    num_tokens = len(document.token_ids_T)
    pieces = []
    for start in piece_starts(num_tokens, max_length):
        ids = document.token_ids_T[start : start + max_length]
        labels = np.where(document.learned_T[start : start + max_length], ids, IGNORED)
        labels[:1] = IGNORED
        pieces.append(Block(ids, labels, np.arange(len(ids), dtype=np.int64)))
    return pieces


def _joined(members: Sequence[Block]) -> Block:
    return Block(
        np.concatenate([member.token_ids_T for member in members]),
        np.concatenate([member.labels_T for member in members]),
        np.concatenate([member.positions_T for member in members]),
    )
