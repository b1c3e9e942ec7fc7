"""The strong network: a shared stem, convolutional experts, a gate that is trained, and the graph of DESIGN D4.

Sizes are chosen for a CPU: a picture costs about 6.8 million multiplications, a third of them in its two experts.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.shared.errors import InvalidDataset
from services.shared.modeling.cooperation_network import CooperationNetwork
from services.trainer_worker.image_cooperation.mixture import ImageMixture, Mixed
from services.trainer_worker.image_cooperation.routing import run_routed

_STEM: Final = 32
_WIDTH: Final = 64
_GROUPS: Final = 8
_GATE_SIDE: Final = 2


class ConvExpert(nn.Module):
    """Two 3x3 convolutions on the stem's features and a linear read-out. Group norm: few pictures may come to it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(_WIDTH, _WIDTH, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(_GROUPS, _WIDTH)
        self.second = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(_GROUPS, _WIDTH)
        self.read_out = nn.Linear(_WIDTH, num_classes)

    def forward(self, features_NDHW: Tensor) -> Tensor:
        """Class logits [N, C]."""
        first_NDHW = self.first_norm(self.first(features_NDHW)).relu()
        second_NDHW = first_NDHW + self.second_norm(self.second(first_NDHW)).relu()
        logits_NC: Tensor = self.read_out(second_NDHW.mean(dim=(2, 3)))
        return logits_NC


class StrongMixture(ImageMixture):
    """Top-k convolutional experts over a shared stem; w' = w + w A decides who of them speaks, and how loudly."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, num_experts: int, graph: CooperationNetwork | None
    ) -> None:
        """Raises InvalidDataset for pictures that cannot be halved twice."""
        super().__init__()
        height, width, channels = image_shape
        if height % 4 or width % 4 or min(height, width) < 8:
            raise InvalidDataset(
                f"The strong setting takes pictures of 8x8 pixels or more, both sides multiples of 4, not "
                f"{height}x{width}: use the published setting."
            )
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, _STEM, 3, padding=1, bias=False),
            nn.BatchNorm2d(_STEM),
            # Before the ReLU, which then has a quarter to do: the two may change places.
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(_STEM, _WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(_WIDTH),
            nn.ReLU(),
        )
        self.trunk = nn.Sequential(
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(_WIDTH), nn.ReLU()
        )
        self.gate = nn.Linear(_WIDTH * _GATE_SIDE**2, num_experts)
        self.experts = nn.ModuleList(ConvExpert(num_classes) for _ in range(num_experts))
        self.graph = graph
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def mix(self, images_NHWC: Tensor, *, top_k: int, with_graph: bool) -> Mixed:
        """Class logits of pictures in -1..1."""
        # A view in channels-last order: what the convolutions of a CPU are fastest with.
        stem_NDHW = self.stem(images_NHWC.permute(0, 3, 1, 2))
        features_NDHW = stem_NDHW + self.trunk(stem_NDHW)
        pooled_ND = functional.adaptive_avg_pool2d(features_NDHW, _GATE_SIDE).flatten(1)
        gate_logits_NE = self.gate(pooled_ND)
        weights_NE = self._weights(gate_logits_NE, top_k=top_k, with_graph=with_graph)
        weights_NK, team_NK = weights_NE.topk(top_k, dim=-1)
        outputs_NKC = run_routed(list(self.experts), features_NDHW, team_NK)
        class_logits_NC = (weights_NK[..., None] * outputs_NKC).sum(dim=1)
        return Mixed(class_logits_NC, gate_logits_NE, team_NK, weights_NK, outputs_NKC)

    def _weights(self, gate_logits_NE: Tensor, *, top_k: int, with_graph: bool) -> Tensor:
        """Softmax over the k best logits, zero elsewhere; then the graph, which may exchange members, never add."""
        best_NK, chosen_NK = gate_logits_NE.topk(top_k, dim=-1)
        weights_NE = torch.zeros_like(gate_logits_NE).scatter(-1, chosen_NK, best_NK.softmax(dim=-1))
        if not with_graph or self.graph is None:
            return weights_NE
        # There is no base model here: a team that inhibits itself altogether stays as the gate chose it.
        no_base_N1 = torch.zeros_like(weights_NE[:, :1])
        moved_NC = self.graph(torch.cat([weights_NE, no_base_N1], dim=-1), max_experts=top_k)
        return torch.where(moved_NC[:, -1:] > 0, weights_NE, moved_NC[:, :-1])
