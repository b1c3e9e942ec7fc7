"""What even, uneven and overfull routing costs."""

import pytest
import torch

from services.shared.modeling.losses import limit_capacity, load_balancing_loss, z_loss


class TestLoadBalancingLoss:
    @pytest.mark.parametrize("experts_per_token", [1, 2, 4])
    def test_is_one_when_even_however_many_speak(self, experts_per_token: int) -> None:
        selected_NE = torch.stack([torch.arange(4).roll(n) < experts_per_token for n in range(8)])

        loss = load_balancing_loss(torch.full((8, 4), 0.25), selected_NE)

        assert loss.item() == pytest.approx(1.0)

    def test_is_the_number_of_experts_when_one_takes_all(self) -> None:
        probabilities_NE = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(8, -1)

        assert load_balancing_loss(probabilities_NE, probabilities_NE > 0).item() == pytest.approx(4.0)

    def test_pushes_down_whom_too_many_chose(self) -> None:
        logits_NE = torch.zeros(4, 3, requires_grad=True)
        selected_NE = torch.tensor([[True, False, False]] * 3 + [[False, True, False]])

        load_balancing_loss(logits_NE.softmax(dim=-1), selected_NE).backward()

        gradient_E = logits_NE.grad.sum(dim=0)
        assert gradient_E[0] > gradient_E[1] > gradient_E[2]


class TestZLoss:
    def test_is_the_squared_log_partition(self) -> None:
        assert z_loss(torch.zeros(5, 4)).item() == pytest.approx(1.3862944**2, rel=1e-5)


class TestLimitCapacity:
    def test_each_expert_takes_its_first_tokens_and_counts_the_rest(self) -> None:
        selected_NE = torch.tensor([[True, False]] * 6 + [[False, True]] * 2)

        capacity = limit_capacity(selected_NE, capacity_factor=1.0, experts_per_token=1)

        assert capacity.kept_NE[:, 0].tolist() == [True] * 4 + [False] * 4
        assert capacity.kept_NE[:, 1].tolist() == [False] * 6 + [True] * 2
        assert capacity.num_overflow == 2

    def test_room_for_all_turns_nobody_away(self) -> None:
        selected_NE = torch.ones(5, 3, dtype=torch.bool)

        assert limit_capacity(selected_NE, capacity_factor=1.25, experts_per_token=3).num_overflow == 0
