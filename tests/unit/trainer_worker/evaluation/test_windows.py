"""Held-out documents: whole ones and such that switch half-way."""

import pytest
import torch

from services.shared.errors import InvalidDataset
from services.trainer_worker.evaluation.windows import switching_windows, whole_windows


def document(domain: int, length: int) -> list[int]:
    return [domain] * length


class TestWholeWindows:
    def test_are_cut_padded_and_labelled_with_their_expert(self) -> None:
        streams = [[document(1, 5), document(1, 30)], [document(2, 8)]]

        windows = whole_windows(streams, [3, 7], num_per_domain=2, length=10, seed=0)

        assert sorted(windows.lengths_B.tolist()) == [5, 8, 10]
        assert windows.counted.sum(axis=1).tolist() == [length - 1 for length in windows.lengths_B.tolist()]
        assert sorted(windows.first_domains.tolist()) == [3, 3, 7]

    def test_of_equal_documents_have_equal_digests_and_others_not(self) -> None:
        streams = [[[number] * 6 for number in range(20)]]
        digests = [whole_windows(streams, [0], num_per_domain=4, length=10, seed=seed).digest for seed in (0, 0, 1)]

        assert digests[0] == digests[1] != digests[2]

    def test_need_a_document_with_something_to_predict(self) -> None:
        with pytest.raises(InvalidDataset, match="2 tokens"):
            whole_windows([[[1]]], [0], num_per_domain=2, length=10, seed=0)


class TestSwitchingWindows:
    def test_switch_half_way_between_all_pairs_of_domains(self) -> None:
        streams = [[document(domain, 50)] for domain in (1, 2, 3)]

        windows = switching_windows(streams, [0, 4, 5], num_documents=6, half=20, seed=0)

        assert windows.switch_at == 20
        ends = {(int(row[0]), int(row[-1])) for row in windows.domains_BT}
        assert ends == {(0, 4), (0, 5), (4, 0), (4, 5), (5, 0), (5, 4)}
        labels = torch.tensor([0, 0, 4, 5])[windows.token_ids_BT]
        assert torch.equal(labels, windows.domains_BT)
        assert all(len(set(row[:20].tolist())) == len(set(row[20:].tolist())) == 1 for row in windows.token_ids_BT)

    def test_join_documents_that_are_too_short_and_shrink_to_the_smallest_domain(self) -> None:
        streams = [[document(1, 100)], [document(2, 6) for _ in range(5)]]

        windows = switching_windows(streams, [0, 1], num_documents=4, half=50, seed=0)

        assert windows.switch_at == 29
        assert windows.token_ids_BT.shape == (4, 58)

    def test_of_too_little_text_are_refused(self) -> None:
        with pytest.raises(InvalidDataset, match="at least 17 tokens"):
            switching_windows([[document(1, 100)], [document(2, 12)]], [0, 1], num_documents=4, half=50, seed=0)
