"""Does a model keep packed documents apart by their positions? Asked of the model itself, not of its name."""

import inspect

import torch
from transformers import PreTrainedModel

_LENGTH = 8


def takes_positions(model: PreTrainedModel) -> bool:
    """True when the model's forward has `position_ids`."""
    return "position_ids" in inspect.signature(model.forward).parameters


def vocab_size_of(model: PreTrainedModel) -> int:
    """Rows of the model's input embedding."""
    weight_VD = model.get_input_embeddings().weight
    assert isinstance(weight_VD, torch.Tensor)
    return int(weight_VD.shape[0])


def keeps_packed_documents_apart(model: PreTrainedModel) -> bool:
    """True when a document after another in one row gets the logits that it gets alone.

    Draws no global random numbers.
    """
    if not takes_positions(model):
        return False
    generator = torch.Generator().manual_seed(0)
    pair_BT = torch.randint(0, vocab_size_of(model), (1, 2 * _LENGTH), generator=generator).to(model.device)
    positions_BT = torch.arange(_LENGTH, device=model.device).repeat(2).unsqueeze(0)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        packed_TV = model(input_ids=pair_BT, position_ids=positions_BT, use_cache=False).logits[0, _LENGTH:].float()
        alone_TV = (
            model(input_ids=pair_BT[:, _LENGTH:], position_ids=positions_BT[:, :_LENGTH], use_cache=False)
            .logits[0]
            .float()
        )
    model.train(was_training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    return bool((packed_TV - alone_TV).abs().max() <= tolerance * alone_TV.std())
