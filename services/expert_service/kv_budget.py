"""How many bytes keys and values take, and may take."""

from typing import Any, Final

import psutil
import torch
from transformers import PreTrainedModel

from services.shared.errors import InvalidRequest

_SHARE_OF_FREE_MEMORY: Final = {"cpu": 0.25, "cuda": 0.5}


@torch.inference_mode()
def layer_bytes(model: PreTrainedModel) -> tuple[int, ...]:
    """Bytes of one position's key and value in each layer, as the model itself makes them for one token.

    Raises InvalidRequest for models that keep something else than a key and a value per token and layer.
    """
    outputs: Any = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    layers = getattr(getattr(outputs, "past_key_values", None), "layers", ())
    sizes = [_bytes_of(layer) for layer in layers]
    if not sizes or None in sizes:
        raise InvalidRequest(
            f"{type(model).__name__} cannot be served: it does not keep a key and a value per token in every layer "
            "(as recurrent and linear-attention models do not). Use a decoder such as Llama, Mistral, Qwen, Gemma, "
            "Phi, GPT-2, GPT-NeoX or OPT.",
            param="base_model",
        )
    return tuple(size for size in sizes if size is not None)


def cache_limit(wanted: int | None, position_bytes: int, *, num_positions: int, device: torch.device) -> int:
    """The bound of the KV cache in bytes: as configured, else all rows in full, at most a share of free memory."""
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
    else:
        free_bytes = psutil.virtual_memory().available
    share = _SHARE_OF_FREE_MEMORY.get(device.type, _SHARE_OF_FREE_MEMORY["cpu"])
    return min(num_positions * position_bytes, int(share * free_bytes))


def _bytes_of(layer: Any) -> int | None:
    """Bytes of a cache layer that has seen one token; None when it holds no plain keys and values."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor):
        return None
    if keys.dim() != 4 or values.dim() != 4 or keys.shape[2] != 1 or hasattr(layer, "conv_states"):
        return None
    return keys.nbytes + values.nbytes
