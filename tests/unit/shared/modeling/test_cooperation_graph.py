"""The graph as served, and as trained, against the definition."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.modeling.cooperation_network import CooperationNetwork
from services.shared.modeling.evidence_file import InvalidEvidence

EXPERTS = ("code", "math", "story")


def random_weights(num_tokens: int, num_columns: int, seed: int = 0) -> np.ndarray:
    """Sparse rows that sum to 1, as a gate gives them."""
    scores_TC = np.random.default_rng(seed).dirichlet(np.full(num_columns, 0.3), size=num_tokens)
    kept_TC = np.where(scores_TC > 0.1, scores_TC, 0.0)
    return kept_TC / kept_TC.sum(axis=1, keepdims=True)


def random_adjacency(num_experts: int, seed: int = 0) -> np.ndarray:
    adjacency_EE = np.random.default_rng(seed).normal(0.0, 0.5, size=(num_experts, num_experts))
    np.fill_diagonal(adjacency_EE, 0.0)
    return adjacency_EE


def slow_twin(weights_C: Sequence[float], adjacency_EE: np.ndarray, max_experts: int) -> list[float]:
    """w' = w + w A for one token, in words."""
    num_experts = len(adjacency_EE)
    raised = [
        weights_C[j] + sum(weights_C[i] * adjacency_EE[i][j] for i in range(num_experts)) for j in range(num_experts)
    ]
    ranked = sorted(range(num_experts), key=lambda j: (-raised[j], j))
    kept = [raised[j] if j in ranked[:max_experts] and raised[j] > 0 else 0.0 for j in range(num_experts)]
    total = sum(kept) + weights_C[-1]
    return [*(k / total for k in kept), weights_C[-1] / total] if total > 0 else [*([0.0] * num_experts), 1.0]


class TestCooperationGraph:
    @pytest.mark.parametrize("max_experts", [1, 2, 4, 8])
    def test_equals_the_definition_written_out(self, max_experts: int) -> None:
        adjacency_EE, weights_TC = random_adjacency(6), random_weights(300, 7)

        weights_after_TC = CooperationGraph(tuple("abcdef"), adjacency_EE).apply(weights_TC, max_experts=max_experts)

        expected_TC = [slow_twin(row, adjacency_EE, max_experts) for row in weights_TC]
        np.testing.assert_allclose(weights_after_TC, expected_TC, atol=1e-12)

    def test_no_edges_is_exactly_no_graph(self) -> None:
        weights_TC = random_weights(100, 4)

        assert np.array_equal(CooperationGraph(EXPERTS, np.zeros((3, 3))).apply(weights_TC, max_experts=2), weights_TC)

    def test_recruits_a_partner_and_inhibits_another(self) -> None:
        adjacency_EE = np.array([[0.0, 0.5, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

        weights_TC = CooperationGraph(EXPERTS, adjacency_EE).apply(np.array([[0.6, 0.0, 0.4, 0.0]]), max_experts=4)

        np.testing.assert_allclose(weights_TC, [[0.6 / 0.9, 0.3 / 0.9, 0.0, 0.0]])

    def test_inhibiting_everybody_leaves_the_base(self) -> None:
        adjacency_EE = np.array([[0.0, -2.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

        weights_TC = CooperationGraph(EXPERTS, adjacency_EE).apply(np.array([[0.5, 0.5, 0.0, 0.0]]), max_experts=4)

        assert weights_TC.tolist() == [[0.0, 0.0, 0.0, 1.0]]

    def test_never_recruits_whom_the_plan_does_not_allow(self) -> None:
        adjacency_EE = np.array([[0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        allowed_C = np.array([True, False, True, True])

        weights_TC = CooperationGraph(EXPERTS, adjacency_EE).apply(
            np.array([[1.0, 0.0, 0.0, 0.0]]), max_experts=4, allowed_C=allowed_C
        )

        assert weights_TC[0, 1] == 0.0
        assert weights_TC[0, 2] > 0.0

    def test_newcomers_have_no_edges_and_the_others_keep_theirs(self) -> None:
        graph = CooperationGraph(("code", "math"), np.array([[0.0, 0.3], [-0.2, 0.0]]))

        widened = graph.over(("math", "poetry", "code"))

        assert widened.adjacency_EE.tolist() == [[0.0, 0.0, -0.2], [0.0, 0.0, 0.0], [0.3, 0.0, 0.0]]

    def test_one_token_gives_the_same_bits_as_many(self) -> None:
        graph, weights_TC = CooperationGraph(tuple("abcdefghi"), random_adjacency(9)), random_weights(200, 10)

        alone_TC = np.concatenate([graph.apply(row[None], max_experts=3) for row in weights_TC])

        assert np.array_equal(graph.apply(weights_TC, max_experts=3), alone_TC)

    def test_survives_the_trip_through_files(self, tmp_path: Path) -> None:
        adjacency_EE = random_adjacency(3).astype(np.float32).astype(np.float64)

        CooperationGraph(EXPERTS, adjacency_EE).save(tmp_path, note="trained on nothing")
        loaded = CooperationGraph.load(tmp_path)

        assert loaded.experts == EXPERTS
        assert np.array_equal(loaded.adjacency_EE, adjacency_EE)

    def test_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        CooperationGraph(EXPERTS, random_adjacency(3)).save(tmp_path)
        (tmp_path / "graph.json").write_text('{"experts": ["only-one"]}')

        with pytest.raises(InvalidEvidence, match=r"graph\.safetensors"):
            CooperationGraph.load(tmp_path)


class TestCooperationNetwork:
    def test_does_what_serving_does(self) -> None:
        network, weights_TC = CooperationNetwork(6, spread=0.5, seed=3), random_weights(300, 7)

        trained_TC = network(torch.tensor(weights_TC, dtype=torch.float32), max_experts=3).detach().numpy()

        served_TC = network.to_graph(tuple("abcdef")).apply(weights_TC, max_experts=3)
        np.testing.assert_allclose(trained_TC, served_TC, atol=1e-6)

    def test_learns_from_its_start_just_off_zero(self) -> None:
        network = CooperationNetwork(3)

        network(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), max_experts=3)[0, 1].backward()

        assert network.edges.grad is not None
        assert network.edges.grad.abs().sum() > 0 or (network.adjacency()[0] < 0).any()

    def test_shrinking_makes_zeros_exact(self) -> None:
        network = CooperationNetwork(4, spread=0.01)

        network.shrink(1.0)

        assert network.to_graph(tuple("abcd")).sparsity == 1.0

    def test_the_scalar_control_has_one_edge_weight(self) -> None:
        adjacency_EE = CooperationNetwork(4, shared=True, spread=1.0).to_graph(tuple("abcd")).adjacency_EE

        assert len(set(adjacency_EE[~np.eye(4, dtype=bool)])) == 1
        assert not np.diag(adjacency_EE).any()

    def test_shuffled_has_the_same_edges_between_others(self) -> None:
        network = CooperationNetwork(5, spread=1.0, seed=2)

        twin = network.shuffled(seed=0)

        edges, others = network.adjacency().detach(), twin.adjacency().detach()
        assert not torch.equal(edges, others)
        assert torch.equal(edges.flatten().sort().values, others.flatten().sort().values)
        assert not torch.diag(others).any()
