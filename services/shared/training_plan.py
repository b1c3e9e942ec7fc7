"""How a training divides its examples: which are held out, how texts are cut and packed, how many steps there are.

Pure arithmetic on lengths, so that a dry run foretells what the trainer will do. No torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from services.shared.errors import InvalidDataset, InvalidRequest
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters

_NUM_EVALUATIONS: Final = 10
_OPEN_BLOCKS: Final = 32


@dataclass(frozen=True)
class StepPlan:
    """How many blocks make a step and how many steps there are."""

    batch_size: int
    accumulation: int
    num_steps: int
    eval_steps: int

    @classmethod
    def of(cls, hyperparameters: ExpertHyperparameters, num_blocks: int) -> "StepPlan":
        """Steps of at most one epoch each: few blocks make smaller steps, not fewer passes."""
        batch_size = min(hyperparameters.batch_size, num_blocks)
        accumulation = min(hyperparameters.gradient_accumulation_steps, math.ceil(num_blocks / batch_size))
        epochs_steps = math.ceil(hyperparameters.num_epochs * num_blocks / (batch_size * accumulation))
        num_steps = hyperparameters.max_steps or max(epochs_steps, 1)
        eval_steps = hyperparameters.eval_steps or math.ceil(num_steps / _NUM_EVALUATIONS)
        return cls(batch_size, accumulation, num_steps, eval_steps)

    def shared_by(self, num_processes: int) -> "StepPlan":
        """What each of so many processes does of every step, so that together they read the same blocks.

        Raises InvalidRequest, naming numbers that would do, where the blocks of a step cannot be shared out evenly.
        """
        if self.batch_size % num_processes == 0:
            return replace(self, batch_size=self.batch_size // num_processes)
        if self.accumulation % num_processes == 0:
            return replace(self, accumulation=self.accumulation // num_processes)
        larger = math.ceil(self.batch_size / num_processes) * num_processes
        raise InvalidRequest(
            f"Here {num_processes} processes train an expert together, and cannot share its steps of "
            f"{self.batch_size} x {self.accumulation} blocks evenly: choose a batch_size that is a multiple of "
            f"{num_processes} and not larger than the number of blocks, such as "
            f"{max(larger - num_processes, num_processes)}, or such a gradient_accumulation_steps.",
            param="hyperparameters.batch_size",
        )

    @property
    def blocks_per_step(self) -> int:
        """Blocks that one optimizer step reads."""
        return self.batch_size * self.accumulation


def held_out_indices(num_examples: int, *, fraction: float, seed: int) -> set[int]:
    """Which examples of a training file validate, at least one and not all; a function of the seed alone.

    Raises InvalidDataset for fewer than two examples.
    """
    if num_examples < 2:
        raise InvalidDataset(
            f"The training file holds {num_examples} example(s), but one must be held out to validate: "
            "give at least 2 examples (20 or more are advisable), or upload a validation file as well.",
            param="training_file",
        )
    num_validation = min(max(1, round(num_examples * fraction)), num_examples - 1)
    order = np.random.default_rng(seed).permutation(num_examples)
    return {int(index) for index in order[:num_validation]}


def piece_starts(num_tokens: int, max_length: int) -> range:
    """Where the pieces of a document begin; they overlap by one token, which is learned in the piece before."""
    return range(0, max(num_tokens - 1, 1), max_length - 1)


def block_sizes(document_sizes: Sequence[int], *, max_length: int, packing: bool, seed: int) -> list[int]:
    """Tokens per block of documents of these sizes, as training would cut and pack them."""
    pieces = [
        min(max_length, size - start) for size in document_sizes if size > 1 for start in piece_starts(size, max_length)
    ]
    if not packing:
        return pieces
    shuffled = [pieces[index] for index in np.random.default_rng(seed).permutation(len(pieces))]
    return [sum(shuffled[member] for member in members) for members in pack(shuffled, max_length)]


def pack(sizes: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of the pieces that share a block: first fit over a few open blocks, a few per cent of padding at most."""
    closed: list[list[int]] = []
    open_blocks: list[tuple[int, list[int]]] = []
    for index, size in enumerate(sizes):
        for slot, (used, members) in enumerate(open_blocks):
            if used + size <= max_length:
                members.append(index)
                open_blocks[slot] = (used + size, members)
                break
        else:
            open_blocks.append((size, [index]))
        if len(open_blocks) > _OPEN_BLOCKS:
            fullest = max(range(len(open_blocks)), key=lambda slot: open_blocks[slot][0])
            closed.append(open_blocks.pop(fullest)[1])
    closed.extend(members for _, members in open_blocks)
    return closed
