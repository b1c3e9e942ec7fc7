"""The demo as it is served: its experts with the evidence that they get when it is first started."""

import shutil
from pathlib import Path

from services.shared.config import Settings
from services.shared.modeling.base_model import load_base_model
from services.shared.publishing import EXEMPLARS_FILE, add_evidence
from services.shared.training_text import read_examples
from services.trainer_worker.demo.domains import DEMO_DOMAINS
from services.trainer_worker.evaluation.subject import Subject


def demo_subject(demo: Path, work: Path) -> Subject:
    """The demo in the folder `demo`; `work` keeps the experts with their evidence."""
    base = load_base_model(Settings(base_model=str(demo / "base"), device="cpu"))
    experts = []
    for name in DEMO_DOMAINS:
        folder = work / "experts" / name
        if not folder.exists():
            partial = work / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(demo / "experts" / name, partial)
            exemplars = read_examples(partial / EXEMPLARS_FILE, filename=EXEMPLARS_FILE)
            add_evidence(partial, examples=exemplars, tokenizer=base.tokenizer)
            folder.parent.mkdir(exist_ok=True)
            partial.rename(folder)
        experts.append((name, folder))
    return Subject(base, experts, demo / "router", None)
