"""The documents that an evaluation reads."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.shared.schemas.evaluation import EvaluationJobSpec
from services.trainer_worker.evaluation.held_out import HeldOutText
from services.trainer_worker.evaluation.staged_reading import num_batches
from services.trainer_worker.evaluation.windows import Windows, switching_windows, whole_windows


@dataclass(frozen=True)
class Documents:
    """What is read: per seed, whole documents and such that switch (None: one domain); and text of no expert."""

    whole: Mapping[int, Windows]
    switching: Mapping[int, Windows | None]
    unknown: Windows | None

    @classmethod
    def draw(cls, text: HeldOutText, spec: EvaluationJobSpec, *, length: int, num_experts: int) -> "Documents":
        """Documents of at most `length` tokens; raises InvalidDataset where there is too little text."""
        whole = {
            seed: whole_windows(text.streams, text.columns, num_per_domain=spec.max_documents, length=length, seed=seed)
            for seed in spec.seeds
        }
        switching = {
            seed: switching_windows(
                text.streams, text.columns, num_documents=spec.max_switching_documents, half=length // 2, seed=seed
            )
            if len(text.domains) > 1
            else None
            for seed in spec.seeds
        }
        unknown = None
        if text.unknown is not None:
            unknown = whole_windows(
                [text.unknown], [num_experts], num_per_domain=spec.max_documents, length=length, seed=spec.seeds[0]
            )
        return cls(whole, switching, unknown)

    def stages(self, seed: int) -> dict[str, Windows]:
        """One seed's documents by the name under which their readings are kept."""
        found = {f"{seed}-whole": self.whole[seed], f"{seed}-switching": self.switching[seed]}
        return {stage: windows for stage, windows in found.items() if windows is not None}

    def num_steps(self, spec: EvaluationJobSpec, *, num_experts: int, num_domains: int, num_routers: int) -> int:
        """How many batches all systems read together; `num_routers` are other filters and other evidence."""
        by_seed = {seed: sum(num_batches(windows) for windows in self.stages(seed).values()) for seed in spec.seeds}
        first = spec.seeds[0]
        num_systems = num_experts + 4 + len(spec.peers)
        num_variants = len(spec.thresholds) + len(spec.top_ks) + num_routers
        total = num_systems * sum(by_seed.values()) + num_variants * by_seed[first]
        if self.unknown is not None:
            total += 3 * num_batches(self.unknown)
        return total + (num_domains * num_batches(self.whole[first]) if spec.without_each and num_experts > 1 else 0)
