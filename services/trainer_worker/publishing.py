"""Artifacts that jobs make: expert versions with their evidence, and Bayes routers. Equal inputs give equal digests."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.shared.config import RouterSettings
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.storage import Storage
from services.shared.training_text import Example
from services.shared.vocabulary import RouterKind
from services.trainer_worker.checkpoints import ADAPTER_FILES, TrainedCheckpoint
from services.trainer_worker.evidence import BaseRow, EvidenceMaker
from services.trainer_worker.releases import Router


def publish_expert(storage: Storage, source: Path, *, examples: Sequence[Example], evidence: EvidenceMaker) -> str:
    """Publish the expert in the folder `source`, with evidence (instead of any it has) from `examples`."""
    with storage.stage() as staged:
        folder = staged / "expert"
        shutil.copytree(source, folder)
        evidence.write(folder, examples)
        return storage.publish(folder)


def publish_checkpoint(storage: Storage, checkpoint: TrainedCheckpoint) -> dict[str, Any]:
    """Publish a checkpoint's adapter alone; what comes back is what the job's row keeps of it."""
    with storage.stage() as staged:
        folder = staged / "checkpoint"
        folder.mkdir()
        for name in ADAPTER_FILES:
            shutil.copy2(checkpoint.folder / name, folder / name)
        digest = storage.publish(folder)
    return {
        "step": checkpoint.step,
        "digest": digest,
        "loss": checkpoint.loss,
        "eval_loss": checkpoint.eval_loss,
        "created_at": int(checkpoint.folder.stat().st_mtime),
    }


def publish_bayes_router(storage: Storage, settings: RouterSettings, base_row: BaseRow) -> Router:
    """Publish a Bayes router over the experts' own evidence."""
    with storage.stage() as folder:
        write_bayes_router(folder, settings=settings, base_evidence=base_row.bigram, base_trunk=base_row.trunk)
        return Router(storage.publish(folder), RouterKind.BAYES)
