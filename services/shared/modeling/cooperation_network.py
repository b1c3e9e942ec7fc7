"""The cooperation graph as it is trained (DESIGN D4): what `CooperationGraph.apply` does, with gradients."""

import numpy as np
import torch
from torch import Tensor, nn

from services.shared.modeling.cooperation_graph import CooperationGraph


class CooperationNetwork(nn.Module):
    """A_EE with zero diagonal. `shared` ties all edges to one learned scalar: every graph's control."""

    mask_EE: Tensor

    def __init__(self, num_experts: int, *, shared: bool = False, spread: float = 0.01, seed: int = 0) -> None:
        """Starts slightly off zero, as relu'(0) = 0 would keep A = 0 for ever."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (1, 1) if shared else (num_experts, num_experts)
        self.edges = nn.Parameter(spread * torch.randn(shape, generator=generator))
        self.register_buffer("mask_EE", 1.0 - torch.eye(num_experts))

    def adjacency(self) -> Tensor:
        """A_EE."""
        return self.edges * self.mask_EE

    def forward(self, weights_NC: Tensor, *, max_experts: int) -> Tensor:
        """w' = w + w A on expert columns, positive ones kept, cut, renormalised with the base column; [N, C]."""
        experts_NE = (weights_NC[:, :-1] + weights_NC[:, :-1] @ self.adjacency()).relu()
        if experts_NE.shape[1] > max_experts:
            cut_N1 = experts_NE.topk(max_experts, dim=-1).values[:, -1:]
            experts_NE = torch.where(experts_NE >= cut_N1, experts_NE, 0.0)
        raised_NC = torch.cat([experts_NE, weights_NC[:, -1:]], dim=-1)
        totals_N1 = raised_NC.sum(dim=-1, keepdim=True)
        base_alone_C = torch.zeros_like(raised_NC[:1])
        base_alone_C[:, -1] = 1.0
        return torch.where(totals_N1 > 0, raised_NC / totals_N1.clamp_min(1e-9), base_alone_C)

    @torch.no_grad()
    def shuffled(self, seed: int) -> "CooperationNetwork":
        """The same edges between other experts: what is left of the graph when it does not matter who recruits whom."""
        twin = CooperationNetwork(len(self.mask_EE))
        off_diagonal = self.mask_EE.bool()
        values = self.adjacency()[off_diagonal]
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
        twin.edges[off_diagonal] = values[order]
        return twin

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Proximal step of the L1 penalty: soft-threshold, so that zeros are exact."""
        self.edges.copy_(self.edges.sign() * (self.edges.abs() - amount).clamp_min(0.0))

    @torch.no_grad()
    def to_graph(self, experts: tuple[str, ...]) -> CooperationGraph:
        """The graph as serving applies it."""
        return CooperationGraph(experts, self.adjacency().double().cpu().numpy().astype(np.float64))
