"""What a study is given, and what it gives back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.router_studies.setting import Setting, base_text, demo_setting, real_setting
from services.shared.config import Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import BigramEvidence, build_bigram_evidence


@dataclass(frozen=True)
class Study:
    """Tables for people, figures for machines."""

    title: str
    tables: str
    figures: dict[str, Any]


@dataclass
class Bench:
    """Where things are, and which seeds."""

    shared: Path
    demo: Path
    work: Path
    seeds: Sequence[int]
    trainings: int
    chosen: Sequence[str]
    started_at: float = field(default_factory=time.monotonic)

    @property
    def texts(self) -> Path:
        """The folder of real text."""
        return self.shared / "data/text"

    @cached_property
    def base(self) -> LoadedBase:
        """stories260K."""
        return load_base_model(Settings(base_model=str(self.shared / "models/stories260K-hf"), device="cpu"))

    @cached_property
    def base_table(self) -> BigramEvidence:
        """Token pairs of what stories260K writes by itself."""
        text = base_text(self.base, self.work / "stories260K.json")
        return build_bigram_evidence(text, self.base.tokenizer.vocab_size)

    def training_seed(self, seed: int) -> int:
        """The training whose experts this seed uses: with fewer trainings than seeds, they take turns.

        Seeds of one training share its split, and differ in documents, switches and tables.
        """
        return self.seeds[self.seeds.index(seed) % self.trainings]

    @property
    def settings(self) -> dict[str, Callable[[int], Setting]]:
        """What makes a setting for a seed, by its name."""
        makes: dict[str, Callable[[int], Setting]] = {"demo": self.generated, "real text": self.real}
        return {name: makes[name] for name in self.chosen}

    def real(self, seed: int, *, with_relatives: bool = False) -> Setting:
        """Real text; trains what is not there yet."""
        self.say(f"seed {seed}: real text")
        training_seed = self.training_seed(seed)
        return real_setting(self.shared, self.work, seed, training_seed=training_seed, with_relatives=with_relatives)

    def generated(self, seed: int) -> Setting:
        """The demo."""
        self.say(f"seed {seed}: the demo")
        return demo_setting(self.demo, self.work, seed)

    def say(self, message: str) -> None:
        """One line of progress."""
        print(f"[{time.monotonic() - self.started_at:6.0f} s] {message}", flush=True)
