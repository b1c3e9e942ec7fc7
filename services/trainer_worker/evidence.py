"""Evidence models of experts and of the base row (DESIGN D1): what the router hears a text by."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.shared.config import Settings
from services.shared.modeling.bigram_evidence import DEFAULT_MAX_TOKENS, BigramEvidence, build_bigram_evidence
from services.shared.modeling.router_artifact import BIGRAM_FILE, EVIDENCE_FOLDER, TRUNK_FILE
from services.shared.modeling.trunk_statistics import TrunkStatistics
from services.shared.publishing import add_evidence
from services.shared.storage import Storage
from services.shared.tokenizer import Tokenizer
from services.shared.training_text import Example

if TYPE_CHECKING:
    from services.shared.modeling.base_model import LoadedBase

_SEED: Final = 0

Streams = Sequence[Sequence[int]]


@dataclass(frozen=True)
class BaseRow:
    """Evidence of the base model's own column."""

    bigram: BigramEvidence
    trunk: TrunkStatistics | None


class EvidenceMaker:
    """Makes the evidence that routers of one kind need: token pairs, and with a `tap_layer` states of the trunk too.

    The same texts give the same bytes. The base model is loaded only when its text or its states are needed and it is
    not given.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        storage: Storage,
        tokenizer: Tokenizer,
        fingerprint: str,
        tap_layer: int | None,
        base: "LoadedBase | None" = None,
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._tap_layer = tap_layer
        self._given_base = base
        self._base_text_file = storage.root / "base_text" / f"{fingerprint}.json"

    def write(self, folder: Path, examples: Sequence[Example]) -> None:
        """Write the evidence of `examples` and a sample of them into an expert's folder."""
        add_evidence(folder, examples=examples, tokenizer=self._tokenizer)
        if self._tap_layer is not None:
            self.trunk_of(examples).save(folder / EVIDENCE_FOLDER / TRUNK_FILE)

    def trunk_of(self, examples: Sequence[Example]) -> TrunkStatistics:
        """Where an expert's texts lie among the states after the tap layer."""
        return self._trunk(self._streams(examples), prefixes=self._base_text)

    def trunk_of_base(self) -> TrunkStatistics:
        """Where the base model's own text lies."""
        return self._trunk(self._base_text)

    def base_row(self, generic: Sequence[Example] | None = None) -> BaseRow:
        """The base row's evidence: of `generic` texts, or of what the base model itself writes."""
        streams = self._base_text if generic is None else self._streams(generic)
        return BaseRow(self._bigram(streams), self._trunk(streams) if self._tap_layer is not None else None)

    def suffices(self, folder: Path) -> bool:
        """True when an expert's folder already holds the evidence that this maker would write."""
        evidence = folder / EVIDENCE_FOLDER
        if self._tap_layer is not None:
            file = evidence / TRUNK_FILE
            if not file.exists() or TrunkStatistics.load(file).tap_layer != self._tap_layer:
                return False
        return (evidence / BIGRAM_FILE).exists()

    def _streams(self, examples: Sequence[Example]) -> Streams:
        """Texts tokenised as requests are."""
        return self._tokenizer.encode_batch([example.text for example in examples])

    def _bigram(self, streams: Streams) -> BigramEvidence:
        return build_bigram_evidence(streams, self._tokenizer.vocab_size, seed=_SEED)

    def _trunk(self, streams: Streams, *, prefixes: Streams = ()) -> TrunkStatistics:
        from services.shared.modeling.trunk import gather_trunk_statistics

        assert self._tap_layer is not None
        return gather_trunk_statistics(
            self._base.model, streams, tap_layer=self._tap_layer, prefixes=prefixes, seed=_SEED
        )

    @cached_property
    def _base(self) -> "LoadedBase":
        if self._given_base is not None:
            return self._given_base
        from services.shared.modeling.base_model import load_base_model

        return load_base_model(self._settings)

    @cached_property
    def _base_text(self) -> Streams:
        """What the base model writes, sampled once per base model and kept in storage: it takes a while."""
        if self._base_text_file.exists():
            kept: list[list[int]] = json.loads(self._base_text_file.read_text())
            return kept
        from services.shared.modeling.base_row import sample_base_text

        streams = sample_base_text(self._base.model, self._tokenizer, num_tokens=DEFAULT_MAX_TOKENS, seed=_SEED)
        self._base_text_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._base_text_file.parent, delete=False) as file:
            json.dump(streams, file)
        os.replace(file.name, self._base_text_file)
        return streams
