"""What both settings' networks promise: pictures in, class logits out, and how the experts came to them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from services.shared.modeling.cooperation_network import CooperationNetwork


@dataclass(frozen=True)
class Mixed:
    """One batch. `gate_logits_NE` are the gate's own values; `team_NK` spoke, with `weights_NK`, saying
    `outputs_NKC`; `class_logits_NC` is their sum."""

    class_logits_NC: Tensor
    gate_logits_NE: Tensor
    team_NK: Tensor
    weights_NK: Tensor
    outputs_NKC: Tensor


class ImageMixture(nn.Module, ABC):
    """Experts behind a gate, with or without a cooperation graph. The graph's parameters are trained apart."""

    graph: CooperationNetwork | None

    @abstractmethod
    def mix(self, images_NHWC: Tensor, *, top_k: int, with_graph: bool) -> Mixed:
        """Class logits of pictures in -1..1. Without the graph, the gate's choice is the team."""
