"""Run each expert on the pictures that chose it, and on no others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def run_routed(experts: Sequence[nn.Module], inputs_N: Tensor, chosen_NK: Tensor) -> Tensor:
    """Outputs [N, K, C] of the experts `chosen_NK` on their rows of `inputs_N` [N, ...].

    Equal to running all experts on everything and gathering, at K/E of the cost.
    """
    num_rows, num_kept = chosen_NK.shape
    chosen_P = chosen_NK.flatten()
    order_P = chosen_P.argsort(stable=True)
    sorted_P = inputs_N.index_select(0, order_P // num_kept)
    counts = torch.bincount(chosen_P, minlength=len(experts)).tolist()
    pieces = sorted_P.split(counts)
    outputs_PC = torch.cat([expert(piece) for expert, piece in zip(experts, pieces, strict=True) if len(piece)])
    return outputs_PC.index_select(0, order_P.argsort()).view(num_rows, num_kept, -1)
