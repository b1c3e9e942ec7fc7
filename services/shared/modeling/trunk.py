"""The base model's first layers as an encoder: hidden states after `tap_layer` layers, and their statistics."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from services.shared.errors import InvalidRequest
from services.shared.modeling.bigram_evidence import sample_windows
from services.shared.modeling.smoothed_states import SmoothedStates
from services.shared.modeling.trunk_statistics import TrunkStatistics
from services.shared.modeling.wiring import decoder_stack

DEFAULT_MAX_TOKENS: Final = 20_000
_LONGEST_PREFIX: Final = 64
_BATCH: Final = 16


class _TapReached(Exception):
    """Carries the states out of a forward pass that need not go on."""

    def __init__(self, states_BTD: Tensor) -> None:
        self.states_BTD = states_BTD


@torch.no_grad()
def trunk_states(model: nn.Module, token_ids_BT: Tensor, tap_layer: int, **arguments: Any) -> Tensor:
    """states_BTD after the first `tap_layer` layers of the model's own forward, which stops there. 0: the embeddings.

    `arguments` are those of the forward pass, such as a cache of the trunk's own, beside the token ids. Raises
    InvalidRequest when the model has fewer layers.
    """
    _, stack = decoder_stack(model)
    if not 0 <= tap_layer < len(stack):
        raise InvalidRequest(f"tap_layer must lie in 0..{len(stack) - 1} for this base model.", param="tap_layer")

    def leave(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _TapReached(args[0] if args else kwargs["hidden_states"])

    handle = stack[tap_layer].register_forward_pre_hook(leave, with_kwargs=True)
    try:
        model(**({"use_cache": False} | arguments), input_ids=token_ids_BT)
    except _TapReached as tap:
        return tap.states_BTD
    finally:
        handle.remove()
    raise AssertionError("the forward pass went around its own layers")


def gather_trunk_statistics(
    model: nn.Module,
    token_streams: Sequence[Sequence[int]],
    *,
    tap_layer: int,
    prefixes: Sequence[Sequence[int]] = (),
    max_tokens: int = DEFAULT_MAX_TOKENS,
    seed: int = 0,
) -> TrunkStatistics:
    """Moments of smoothed states over a random sample of windows of these documents.

    Half of the windows are read after a random piece of a `prefixes` document (generic text), whose own states are
    not counted: it teaches the statistics what a memory that still holds other text looks like.
    """
    generator = np.random.default_rng(seed)
    hidden_size = hidden_size_of(model)
    windows = sample_windows(token_streams, max_tokens, seed)
    prefixed = [(_random_prefix(prefixes, generator), window) for window in windows]
    return TrunkStatistics.of(
        _smoothed_windows(model, prefixed, tap_layer, hidden_size), tap_layer=tap_layer, hidden_size=hidden_size
    )


def hidden_size_of(model: nn.Module) -> int:
    """Width D of the hidden states of a Hugging Face model."""
    config: Any = model.config
    return int(config.get_text_config().hidden_size)


def smooth(states_TD: Tensor) -> npt.NDArray[np.float64]:
    """Smoothed states of one sequence from its start, [T, F]."""
    return SmoothedStates.start(states_TD.shape[-1]).advance(states_TD.float().cpu().numpy())


def _smoothed_windows(
    model: nn.Module,
    prefixed: Sequence[tuple[Sequence[int], npt.NDArray[np.int64]]],
    tap_layer: int,
    hidden_size: int,
) -> Iterator[npt.NDArray[np.float64]]:
    device = next(model.parameters()).device
    for start in range(0, len(prefixed), _BATCH):
        batch = prefixed[start : start + _BATCH]
        rows = [torch.tensor([*prefix, *window.tolist()]) for prefix, window in batch]
        # Padding stands on the right of a causal model: it changes nothing before it.
        token_ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        states_BTD = trunk_states(model, token_ids_BT, tap_layer)
        for states_TD, row, (prefix, _) in zip(states_BTD, rows, batch, strict=True):
            yield smooth(states_TD[: len(row)])[len(prefix) :]


def _random_prefix(prefixes: Sequence[Sequence[int]], generator: np.random.Generator) -> Sequence[int]:
    if not prefixes or generator.random() < 0.5:
        return ()
    text = prefixes[int(generator.integers(len(prefixes)))]
    length = int(generator.integers(1, _LONGEST_PREFIX + 1))
    start = int(generator.integers(max(1, len(text) - length)))
    return text[start : start + length]
