"""Documents as a graph sees them: token ids under a router's weights, and what the mixture says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.shared.modeling.cooperation_network import CooperationNetwork
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.trunk import trunk_states
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
from services.trainer_worker.training.spliced_documents import DocumentSplicer

Streams = Sequence[Sequence[int]]


@dataclass(frozen=True)
class RoutedDocuments:
    """Documents under the router's weights; `counted_BT` says which of their predicted tokens are text, [B, T-1]."""

    token_ids_BT: Tensor
    weights_BTC: Tensor
    counted_BT: Tensor

    def means(self, nats_BT: Tensor) -> np.ndarray:
        """Nats per counted token of each document, [B]."""
        counted_BT = nats_BT.cpu() * self.counted_BT
        means: np.ndarray = (counted_BT.sum(dim=1) / self.counted_BT.sum(dim=1)).numpy()
        return means


@dataclass(frozen=True)
class TestDocuments:
    """What every graph is judged on: documents that switch domain, and whole ones, read from their beginning."""

    spliced: tuple[RoutedDocuments, ...]
    whole: tuple[RoutedDocuments, ...]


class DocumentReader:
    """Routes documents by a release's router, and reads them with its experts."""

    def __init__(self, ensemble: ExpertEnsemble, scorer: ReleaseScorer) -> None:
        self.ensemble = ensemble
        self.scorer = scorer

    def draw(self, splicer: DocumentSplicer, num_documents: int) -> RoutedDocuments:
        """The splicer's next documents."""
        return self.routed(list(splicer.draw(num_documents).token_ids_BT))

    def routed(self, rows: Sequence[Tensor]) -> RoutedDocuments:
        """Token ids, padded at the end, under the weights that the router gives them."""
        token_ids_BT = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        weights = [torch.from_numpy(self._route(ids_T)) for ids_T in token_ids_BT]
        lengths_B1 = torch.tensor([[len(row)] for row in rows])
        counted_BT = torch.arange(1, token_ids_BT.shape[1]) < lengths_B1
        return RoutedDocuments(token_ids_BT, torch.stack(weights), counted_BT)

    def test_documents(self, streams: Sequence[Streams], *, number: int, length: int, batch_size: int) -> TestDocuments:
        """`number` spliced ones, and as many whole ones of all experts, cut to `length` tokens."""
        splicer = DocumentSplicer(streams, length=length, seed=1000)
        spliced = tuple(self.draw(splicer, batch_size) for _ in range(number // batch_size))
        per_expert = max(number // len(streams), 1)
        rows = [
            torch.tensor(document[:length])
            for documents in streams
            for document in documents[:per_expert]
            if len(document) > 1
        ]
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        return TestDocuments(spliced, tuple(self.routed(batch) for batch in batches))

    def nats(
        self,
        documents: RoutedDocuments,
        network: CooperationNetwork | None,
        *,
        max_experts: int,
        weights_BTC: Tensor | None = None,
    ) -> Tensor:
        """-log p of every token but the first under the network's change of the weights, [B, T-1]; None changes none.

        `weights_BTC` stand in for the router's own.
        """
        weights_BTC = documents.weights_BTC if weights_BTC is None else weights_BTC
        if network is not None:
            weights_BTC = network(weights_BTC.flatten(0, 1), max_experts=max_experts).view(weights_BTC.shape)
        return self.ensemble.nats(documents.token_ids_BT, weights_BTC[..., :-1])

    def states(self, ids_T: Tensor) -> np.ndarray | None:
        """Hidden states [T, D] of a document at the router's tap; None where it reads none."""
        if self.scorer.tap_layer is None:
            return None
        states_TD: np.ndarray = trunk_states(self.ensemble.base.model, ids_T[None], self.scorer.tap_layer)[0].numpy()
        return states_TD

    def _route(self, ids_T: Tensor) -> np.ndarray:
        return self.scorer.weights(self.scorer.advance(self.scorer.start(), ids_T.tolist(), self.states(ids_T)))
