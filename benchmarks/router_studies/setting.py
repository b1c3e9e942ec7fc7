"""A base model, its experts, their text and held-out documents: the two settings that the studies are made in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.router_studies.adapters import relatives, train_all
from benchmarks.routing_quality.texts import read_domains
from services.shared.config import Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.base_row import sample_base_text
from services.shared.modeling.bigram_evidence import (
    DEFAULT_MAX_TOKENS,
    BigramEvidence,
    BigramEvidenceStack,
    build_bigram_evidence,
)
from services.shared.modeling.size_correction import SizeCurve, correction, size_curve
from services.shared.modeling.trunk import gather_trunk_statistics, smooth, trunk_states
from services.shared.modeling.trunk_evidence import DiscriminantRows
from services.shared.modeling.trunk_statistics import TrunkStatistics
from services.shared.publishing import EXEMPLARS_FILE
from services.shared.training_text import read_examples
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, Split
from services.trainer_worker.evaluation.windows import Streams, Windows, switching_windows, whole_windows

NUM_ITEMS = 100
_STATISTICS_TOKENS = 10_000
_BATCH = 16


@dataclass(frozen=True)
class Setting:
    """For one seed. Streams are tokenised documents by expert; `window_tokens` is the longest document read."""

    name: str
    seed: int
    base: LoadedBase
    experts: tuple[tuple[str, Path], ...]
    domains: tuple[str, ...]
    training: Mapping[str, Streams]
    validation: Mapping[str, Streams]
    held_out: Mapping[str, Streams]
    generic: Streams
    base_table: BigramEvidence
    window_tokens: int
    min_tokens: int
    folder: Path

    def whole(self, part: Mapping[str, Streams], num_per_domain: int) -> Windows:
        """Random documents of one part, as many of each domain."""
        streams = [part[name] for name in self.domains]
        return whole_windows(
            streams,
            range(len(streams)),
            num_per_domain=num_per_domain,
            length=self.window_tokens,
            min_tokens=self.min_tokens,
            seed=self.seed,
        )

    def switching(self, part: Mapping[str, Streams], num_documents: int) -> Windows:
        """Documents that change their domain half-way."""
        streams = [part[name] for name in self.domains]
        half = self.window_tokens // 2
        return switching_windows(streams, range(len(streams)), num_documents=num_documents, half=half, seed=self.seed)

    def of_nobody(self, documents: Streams, num: int) -> Windows:
        """Documents that belong to no expert: their column is the base's."""
        return whole_windows(
            [documents], [len(self.domains)], num_per_domain=num, length=self.window_tokens, seed=self.seed
        )

    def table(self, name: str, max_tokens: int = DEFAULT_MAX_TOKENS) -> BigramEvidence:
        """Token pairs of an expert's text, as an expert version has them."""
        return build_bigram_evidence(
            self.training[name], self.base.tokenizer.vocab_size, max_tokens=max_tokens, seed=self.seed
        )

    def curve(self) -> SizeCurve:
        """What small tables fall short, measured on the base's own row."""
        return size_curve(self.base_table)

    def stack(
        self, tables: Sequence[BigramEvidence], *, base: BigramEvidence | None = None, base_bias: float = 0.0
    ) -> BigramEvidenceStack:
        """These experts' tables and the base's, corrected for their sizes; `base_bias` nats a token for the base."""
        curve = self.curve()
        corrections = [correction(curve, table.num_tokens) for table in tables]
        return BigramEvidenceStack([*tables, base or self.base_table], [*corrections, base_bias])

    def rows(self, names: Sequence[str], tap_layer: int) -> DiscriminantRows:
        """Discriminant rows of these experts and the base."""
        return DiscriminantRows.of([self._statistics(name, tap_layer) for name in [*names, None]])

    def states(self, windows: Windows, rows: DiscriminantRows) -> np.ndarray:
        """Log-evidence of smoothed trunk states, [B, T, C]."""
        evidence = []
        for start in range(0, len(windows), _BATCH):
            ids_BT = windows.token_ids_BT[start : start + _BATCH].to(self.base.device)
            states_BTD = trunk_states(self.base.model, ids_BT, rows.tap_layer)
            evidence += [rows.log_evidence(smooth(states_TD)) for states_TD in states_BTD]
        return np.stack(evidence)

    def _statistics(self, name: str | None, tap_layer: int) -> TrunkStatistics:
        file = self.folder / "statistics" / f"{name or 'the base'}-{tap_layer}.safetensors"
        if not file.exists():
            gather_trunk_statistics(
                self.base.model,
                self.training[name] if name else self.generic,
                tap_layer=tap_layer,
                prefixes=self.generic if name else (),
                max_tokens=_STATISTICS_TOKENS,
                seed=self.seed,
            ).save(file)
        return TrunkStatistics.load(file)


def real_setting(shared: Path, work: Path, seed: int, *, training_seed: int, with_relatives: bool) -> Setting:
    """stories260K and five domains of real text; with relatives of two of them if they are asked for."""
    base = load_base_model(Settings(base_model=str(shared / "models/stories260K-hf"), device="cpu"))
    domains = read_domains(shared / "data/text", seed=training_seed)
    every = [*domains, *(relatives(domains) if with_relatives else ())]
    experts = train_all(every, base_model=base.name, folder=work / f"seed{training_seed}", seed=training_seed)
    generic = base_text(base, work / "stories260K.json")
    encode = base.tokenizer.encode_batch
    return Setting(
        name="real text",
        seed=seed,
        base=base,
        experts=tuple(experts),
        domains=tuple(domain.name for domain in domains),
        training={domain.name: encode(domain.train) for domain in every},
        validation={domain.name: encode(domain.validation) for domain in domains},
        held_out={domain.name: encode(domain.held_out) for domain in domains},
        generic=generic,
        base_table=build_bigram_evidence(generic, base.tokenizer.vocab_size),
        window_tokens=256,
        min_tokens=64,
        folder=work / f"seed{seed}",
    )


def demo_setting(demo: Path, work: Path, seed: int) -> Setting:
    """The demo's base and experts, as they are committed; documents are generated items."""
    base = load_base_model(Settings(base_model=str(demo / "base"), device="cpu"))
    encode = base.tokenizer.encode_batch
    exemplars = {
        name: read_examples(demo / "experts" / name / EXEMPLARS_FILE, filename=EXEMPLARS_FILE) for name in DEMO_DOMAINS
    }
    return Setting(
        name="demo",
        seed=seed,
        base=base,
        experts=tuple((name, demo / "experts" / name) for name in DEMO_DOMAINS),
        domains=DEMO_DOMAINS,
        training={name: encode([example.text for example in examples]) for name, examples in exemplars.items()},
        validation={name: encode(_items(name, 1000 + seed, "validation")) for name in DEMO_DOMAINS},
        held_out={name: encode(_items(name, seed, "held_out")) for name in DEMO_DOMAINS},
        generic=base_text(base, work / "demo.json", num_tokens=_STATISTICS_TOKENS),
        base_table=BigramEvidence.load(demo / "router/base_evidence/bigram.safetensors"),
        window_tokens=128,
        min_tokens=2,
        folder=work / f"demo{seed}",
    )


def base_text(base: LoadedBase, file: Path, *, num_tokens: int = DEFAULT_MAX_TOKENS) -> list[list[int]]:
    """What the base model writes by itself; kept in `file`."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        text = sample_base_text(base.model, base.tokenizer, num_tokens=num_tokens, seed=0)
        file.write_text(json.dumps(text))
    text = json.loads(file.read_text())
    assert isinstance(text, list)
    return text


def _items(name: str, seed: int, split: Split) -> list[str]:
    return [item.text for item in DOMAINS[name].generate(seed, NUM_ITEMS, split)]
