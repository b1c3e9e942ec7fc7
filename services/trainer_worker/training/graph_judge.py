"""What networks cost on the documents that all of them are judged on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.shared.modeling.cooperation_network import CooperationNetwork
from services.trainer_worker.training.graph_documents import DocumentReader, RoutedDocuments, TestDocuments
from services.trainer_worker.training.graph_report import Losses, RoutedToken


@dataclass(frozen=True)
class GraphJudge:
    """Reads the test documents under networks; `check` raises TrainingStopped when it is time to go."""

    reader: DocumentReader
    documents: TestDocuments
    max_experts: int
    check: Callable[[], None]

    def losses(
        self,
        network: CooperationNetwork | None,
        *,
        max_experts: int | None = None,
        weigh: Callable[[RoutedDocuments], Tensor] | None = None,
    ) -> Losses:
        """Nats per token of each document. `max_experts` and `weigh` stand in for the release's bound and router."""
        kept = max_experts or self.max_experts

        @torch.no_grad()
        def read(batches: Sequence[RoutedDocuments]) -> np.ndarray:
            means = []
            for batch in batches:
                self.check()
                weights_BTC = weigh(batch) if weigh else None
                means.append(batch.means(self.reader.nats(batch, network, max_experts=kept, weights_BTC=weights_BTC)))
            return np.concatenate(means)

        return Losses(read(self.documents.spliced), read(self.documents.whole))

    @torch.no_grad()
    def examples(self, network: CooperationNetwork, number: int) -> Iterator[RoutedToken]:
        """Every token of the first `number` spliced documents, with the graph and without it."""
        documents = self.documents.spliced[0]
        pairs = zip(documents.token_ids_BT[:number], documents.weights_BTC[:number], strict=True)
        for sample, (ids_T, weights_TC) in enumerate(pairs):
            changed_TC = network(weights_TC, max_experts=self.max_experts)
            for position, token_id in enumerate(ids_T.tolist()):
                before_C, after_C = weights_TC[position].tolist(), changed_TC[position].tolist()
                yield RoutedToken(sample, position, token_id, tuple(before_C), tuple(after_C))
