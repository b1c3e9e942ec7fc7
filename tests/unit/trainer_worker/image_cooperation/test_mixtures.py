"""Both networks do what they say, checked against slow twins that compute every expert on every picture."""

import math

import pytest
import torch
from torch import Tensor, nn

from services.shared.errors import InvalidDataset
from services.shared.modeling.cooperation_network import CooperationNetwork
from services.trainer_worker.image_cooperation.mixture import Mixed
from services.trainer_worker.image_cooperation.objective import team_similarity, weight_entropy
from services.trainer_worker.image_cooperation.published_mixture import PublishedGraph, PublishedMixture
from services.trainer_worker.image_cooperation.routing import run_routed
from services.trainer_worker.image_cooperation.strong_mixture import StrongMixture

SHAPE, CLASSES, EXPERTS = (8, 8, 1), 5, 4


def pictures(num_images: int = 9, seed: int = 0) -> Tensor:
    """Pictures in -1..1, [N, 8, 8, 1]."""
    return torch.rand((num_images, *SHAPE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def published(graph: PublishedGraph | None = None) -> PublishedMixture:
    """The same experts and gate whatever the graph."""
    torch.manual_seed(3)
    return PublishedMixture(SHAPE, CLASSES, EXPERTS, graph)


def strong(graph: CooperationNetwork | None = None) -> StrongMixture:
    """The same stem, experts and gate whatever the graph; ready for use, not for training."""
    torch.manual_seed(3)
    network = StrongMixture(SHAPE, CLASSES, EXPERTS, graph)
    network.eval()
    return network


class TestRouting:
    def test_equals_running_every_expert_on_everything(self) -> None:
        torch.manual_seed(0)
        experts = [nn.Linear(6, 3) for _ in range(EXPERTS)]
        inputs_ND = torch.randn(20, 6, requires_grad=True)
        chosen_NK = torch.rand(20, EXPERTS).topk(2, dim=-1).indices

        routed_NKC = run_routed(experts, inputs_ND, chosen_NK)
        all_NEC = torch.stack([expert(inputs_ND) for expert in experts], dim=1)
        gathered_NKC = all_NEC.gather(1, chosen_NK[..., None].expand(-1, -1, 3))

        torch.testing.assert_close(routed_NKC, gathered_NKC)
        weights = torch.randn_like(routed_NKC)
        (mine,) = torch.autograd.grad((routed_NKC * weights).sum(), inputs_ND)
        (twins,) = torch.autograd.grad((gathered_NKC * weights).sum(), inputs_ND)
        torch.testing.assert_close(mine, twins)

    def test_leaves_out_experts_that_nobody_chose(self) -> None:
        class Untouchable(nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                raise AssertionError("nobody chose it")

        outputs_NKC = run_routed([nn.Linear(6, 3), Untouchable()], torch.randn(4, 6), torch.zeros(4, 1).long())

        assert outputs_NKC.shape == (4, 1, 3)


class TestPublished:
    def test_weighs_a_team_by_the_column_means_of_its_part_of_the_graph(self) -> None:
        graph = PublishedGraph(EXPERTS, seed=1)
        network = published(graph)

        mixed = network.mix(pictures(), top_k=3, with_graph=True)

        for row in range(9):
            team = mixed.team_NK[row].tolist()
            raised = []
            for column in team:
                mean = sum(graph.edges[source, column].item() for source in team) / 3
                raised.append(1 / (1 + math.exp(-mean)))
            weights = [value / sum(raised) for value in raised]
            flat_D = pictures()[row].flatten()
            answer_C = sum(
                weight * network.experts[expert](flat_D) for weight, expert in zip(weights, team, strict=True)
            )
            assert mixed.weights_NK[row].tolist() == pytest.approx(weights, abs=1e-6)
            torch.testing.assert_close(mixed.class_logits_NC[row], answer_C)

    def test_chooses_the_highest_gate_values_best_first(self) -> None:
        mixed = published().mix(pictures(), top_k=3, with_graph=False)

        assert torch.equal(mixed.team_NK, mixed.gate_logits_NE.argsort(dim=-1, descending=True)[:, :3])

    @pytest.mark.parametrize("top_k", [1, 2, 3])
    def test_one_learned_scalar_is_no_graph_at_all(self, top_k: int) -> None:
        """Equal columns cancel in the normalisation: the published aggregation cannot tell a scalar from nothing."""
        with_scalar = published(PublishedGraph(EXPERTS, shared=True, seed=1))

        mixed = with_scalar.mix(pictures(), top_k=top_k, with_graph=True)

        torch.testing.assert_close(
            mixed.class_logits_NC, published().mix(pictures(), top_k=top_k, with_graph=False).class_logits_NC
        )

    def test_a_graph_of_zeros_is_no_graph(self) -> None:
        graph = PublishedGraph(EXPERTS)
        nn.init.zeros_(graph.edges)

        mixed = published(graph).mix(pictures(), top_k=2, with_graph=True)

        torch.testing.assert_close(mixed.weights_NK, torch.full((9, 2), 0.5))

    def test_a_graph_says_nothing_to_a_team_of_one(self) -> None:
        mixed = published(PublishedGraph(EXPERTS, seed=1)).mix(pictures(), top_k=1, with_graph=True)

        torch.testing.assert_close(mixed.weights_NK, torch.ones(9, 1))

    def test_gate_is_never_trained_and_the_graph_is(self) -> None:
        network = published(PublishedGraph(EXPERTS, seed=1))

        network.mix(pictures(), top_k=2, with_graph=True).class_logits_NC.square().sum().backward()

        assert all(parameter.grad is None for parameter in network.gate.parameters())
        assert network.graph is not None
        assert network.graph.edges.grad is not None
        assert network.graph.edges.grad.abs().sum() > 0


class TestStrong:
    def test_without_edges_is_the_gates_own_choice(self) -> None:
        graph = CooperationNetwork(EXPERTS)
        nn.init.zeros_(graph.edges)

        mixed = strong(graph).mix(pictures(), top_k=2, with_graph=True)
        plain = strong().mix(pictures(), top_k=2, with_graph=False)

        torch.testing.assert_close(mixed.class_logits_NC, plain.class_logits_NC)
        best_NK, chosen_NK = plain.gate_logits_NE.topk(2, dim=-1)
        assert torch.equal(plain.team_NK, chosen_NK)
        torch.testing.assert_close(plain.weights_NK, best_NK.softmax(dim=-1))

    def test_recruits_whom_the_graph_names_and_stays_a_team_of_k(self) -> None:
        graph = CooperationNetwork(EXPERTS)
        with torch.no_grad():
            graph.edges.zero_()
            graph.edges[:, 0] = 5.0  # whoever is chosen calls expert 0

        mixed = strong(graph).mix(pictures(), top_k=2, with_graph=True)

        assert (mixed.team_NK[:, 0] == 0).all()
        assert mixed.team_NK.shape == (9, 2)
        torch.testing.assert_close(mixed.weights_NK.sum(dim=1), torch.ones(9))

    def test_a_team_that_silences_itself_stays_as_the_gate_chose_it(self) -> None:
        graph = CooperationNetwork(EXPERTS)
        nn.init.constant_(graph.edges, -9.0)

        mixed = strong(graph).mix(pictures(), top_k=2, with_graph=True)

        torch.testing.assert_close(mixed.weights_NK, strong().mix(pictures(), top_k=2, with_graph=False).weights_NK)

    def test_gate_and_graph_are_both_trained_by_the_task(self) -> None:
        network = strong(CooperationNetwork(EXPERTS, spread=0.1))

        network.mix(pictures(), top_k=2, with_graph=True).class_logits_NC.square().sum().backward()

        assert network.graph is not None
        for parameter in (network.gate.weight, network.graph.edges):
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0

    @pytest.mark.parametrize("shape", [(4, 4, 3), (10, 8, 3), (30, 32, 3)])
    def test_says_which_pictures_it_takes(self, shape: tuple[int, int, int]) -> None:
        with pytest.raises(InvalidDataset, match="multiples of 4"):
            StrongMixture(shape, CLASSES, EXPERTS, None)


class TestPenalties:
    def test_similarity_is_the_mean_cosine_of_all_pairs(self) -> None:
        outputs_NKC = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))

        similarity_N = team_similarity(outputs_NKC)

        pairs = [(0, 1), (0, 2), (1, 2)]
        slow_N = sum(
            nn.functional.cosine_similarity(outputs_NKC[:, left], outputs_NKC[:, right]) for left, right in pairs
        )
        assert isinstance(slow_N, Tensor)
        torch.testing.assert_close(similarity_N, slow_N / 3)

    def test_entropy_is_one_for_equal_weights_and_zero_for_a_single_voice(self) -> None:
        entropy_N = weight_entropy(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]))

        torch.testing.assert_close(entropy_N, torch.tensor([1.0, 0.0]))


def test_what_a_network_returns_fits_together() -> None:
    for network in (published(), strong()):
        mixed: Mixed = network.mix(pictures(), top_k=2, with_graph=False)
        answer_NC = (mixed.weights_NK[..., None] * mixed.outputs_NKC).sum(dim=1)
        torch.testing.assert_close(mixed.class_logits_NC, answer_NC)
