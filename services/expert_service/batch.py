"""One forward pass as tensors: which tokens of which sequences, where they stand, what they may see.

Rows are aligned to the right, so that the last column holds every sequence's newest token. Shape letters: B rows,
Q tokens per row, T positions in the cache.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from services.expert_service.kv_cache import CacheView, make_view
from services.expert_service.sequence import Sequence
from services.shared.errors import InvalidRequest

Masks = Tensor | dict[str, Tensor]
_KNOWN_KINDS: Final = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one sequence, to be computed in one pass."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.start + self.count

    @property
    def token_ids(self) -> list[int]:
        """The tokens themselves."""
        return self.sequence.token_ids(self.start, self.count)


@dataclass(frozen=True)
class ForwardBatch:
    """Inputs of one pass. Padding has position 0, sees nothing and is written to the scratch column."""

    spans: tuple[Span, ...]
    token_ids_BQ: Tensor
    positions_BQ: Tensor
    masks: Masks
    view: CacheView

    @property
    def num_columns(self) -> int:
        """Q."""
        return self.token_ids_BQ.shape[1]


@dataclass(frozen=True)
class AttentionWindows:
    """How far back a model's layers look: one window for all, or one per kind of layer (None = everything)."""

    by_kind: Mapping[str, int | None]

    @classmethod
    def of(cls, config: Any) -> "AttentionWindows":
        """From a transformers configuration (`layer_types`, `sliding_window`).

        Raises InvalidRequest for kinds of layers that look back in another way: a short self-test would not notice.
        """
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        gpt_neo_kinds = set(getattr(config, "attention_layers", None) or ()) - {"global"}
        unknown = sorted((kinds | gpt_neo_kinds) - _KNOWN_KINDS)
        if unknown:
            raise InvalidRequest(
                f"The base model has layers of kind {', '.join(unknown)}, which are not served: only full and sliding "
                "attention is. Use a base model such as Llama, Mistral, Qwen, Gemma, Phi, GPT-2, GPT-NeoX or OPT.",
                param="base_model",
            )
        if not kinds:
            return cls({"all": window})
        return cls({kind: window if "sliding" in kind else None for kind in sorted(kinds)})

    def masks(self, positions_BQ: Tensor, num_positions: int, dtype: torch.dtype) -> Masks:
        """Additive masks [B, 1, Q, T]: 0 where a token may look, else the lowest number; padding has position -1."""
        made = {kind: _mask(positions_BQ, num_positions, window, dtype) for kind, window in self.by_kind.items()}
        return made if len(made) > 1 else next(iter(made.values()))


def make_batch(
    spans: Items[Span], windows: AttentionWindows, *, dtype: torch.dtype, device: torch.device
) -> ForwardBatch:
    """The tensors of a pass over `spans`, whose sequences have places."""
    num_columns = max(span.count for span in spans)
    num_positions = max(span.end for span in spans)
    token_ids = np.zeros((len(spans), num_columns), dtype=np.int64)
    positions = np.full((len(spans), num_columns), -1, dtype=np.int64)
    for row, span in enumerate(spans):
        token_ids[row, num_columns - span.count :] = span.token_ids
        positions[row, num_columns - span.count :] = np.arange(span.start, span.end)
    positions_BQ = torch.from_numpy(positions).to(device)
    places = [span.sequence.place for span in spans]
    return ForwardBatch(
        spans=tuple(spans),
        token_ids_BQ=torch.from_numpy(token_ids).to(device),
        positions_BQ=positions_BQ.clamp(min=0),
        masks=windows.masks(positions_BQ, num_positions, dtype),
        view=make_view([place for place in places if place is not None], positions_BQ, [span.end for span in spans]),
    )


def _mask(positions_BQ: Tensor, num_positions: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Causal, within the window where there is one."""
    seen_T = torch.arange(num_positions, device=positions_BQ.device)
    hidden_BQT = seen_T > positions_BQ[..., None]
    if window is not None and num_positions > window:
        hidden_BQT |= seen_T <= positions_BQ[..., None] - window
    mask_BQT = torch.zeros(hidden_BQT.shape, dtype=dtype, device=positions_BQ.device)
    return mask_BQT.masked_fill_(hidden_BQT, torch.finfo(dtype).min)[:, None]
