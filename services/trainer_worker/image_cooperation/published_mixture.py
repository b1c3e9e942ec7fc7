"""The published network: flat MLP experts, a gate that is never trained, and the published aggregation.

A hard gate gives each of its k experts the weight 1/k whatever its logits, so no gradient reaches it: which experts see
a picture is a random projection, drawn at the start. That is how the published figures came about, and it is kept.
"""

from typing import Final

import torch
from torch import Tensor, nn

from services.shared.modeling.cooperation_network import CooperationNetwork
from services.trainer_worker.image_cooperation.mixture import ImageMixture, Mixed
from services.trainer_worker.image_cooperation.routing import run_routed

_HIDDEN: Final = 64


class PublishedGraph(CooperationNetwork):
    """A_EE as published: N(0, 1) at the start, its diagonal learned too, read through sigmoid(column means)."""

    def __init__(self, num_experts: int, *, shared: bool = False, seed: int = 0) -> None:
        super().__init__(num_experts, shared=shared, spread=1.0, seed=seed)
        self.mask_EE.fill_(1.0)

    def team_weights(self, team_NK: Tensor) -> Tensor:
        """a_NK: c_j = mean_i A[s_i, s_j] over the team, q = sigmoid(c), a = q / sum q (equal gate weights cancel)."""
        adjacency_EE = self.adjacency()
        within_NKK = adjacency_EE[team_NK[:, :, None], team_NK[:, None, :]]
        raised_NK = within_NKK.mean(dim=1).sigmoid()
        return raised_NK / raised_NK.sum(dim=1, keepdim=True)


class PublishedMixture(ImageMixture):
    """num_experts MLPs of one hidden layer of 64 over the flattened picture."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, num_experts: int, graph: PublishedGraph | None
    ) -> None:
        super().__init__()
        num_inputs = image_shape[0] * image_shape[1] * image_shape[2]
        self.gate = nn.Linear(num_inputs, num_experts).requires_grad_(requires_grad=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(num_inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, num_classes))
            for _ in range(num_experts)
        )
        self.graph = graph

    def mix(self, images_NHWC: Tensor, *, top_k: int, with_graph: bool) -> Mixed:
        """Class logits of pictures in -1..1."""
        flat_ND = images_NHWC.flatten(1)
        gate_logits_NE = self.gate(flat_ND)
        team_NK = gate_logits_NE.topk(top_k, dim=-1).indices
        outputs_NKC = run_routed(list(self.experts), flat_ND, team_NK)
        if with_graph and isinstance(self.graph, PublishedGraph):
            weights_NK = self.graph.team_weights(team_NK)
        else:
            weights_NK = torch.full_like(outputs_NKC[..., 0], 1.0 / top_k)
        class_logits_NC = (weights_NK[..., None] * outputs_NKC).sum(dim=1)
        return Mixed(class_logits_NC, gate_logits_NE, team_NK, weights_NK, outputs_NKC)
