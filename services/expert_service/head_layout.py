"""The language-model head laid out for decoding on a CPU.

A few tokens against a large vocabulary is the slowest product of a small model's step. With the weight stored column by
column it runs up to 2.6 times faster at one token and 1.2-1.5 times at eight to sixteen (benchmarks/results), and the
module stays what it was: the same shape, other strides. A head tied to the embedding gets a copy of its own.
"""

import torch
from torch import nn
from transformers import PreTrainedModel


def lay_out_head(model: PreTrainedModel) -> None:
    """Store the head's weight transposed where that pays: float32 on a CPU."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.weight.device.type != "cpu" or head.weight.dtype is not torch.float32:
        return
    columns_first_VD = head.weight.detach().T.contiguous().T
    head.weight = nn.Parameter(columns_first_VD, requires_grad=False)
