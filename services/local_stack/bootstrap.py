"""The first start: the committed demo becomes experts in the registry and an active release.

Layout of the demo: `base/`, `experts/<name>/` (PEFT files, `exemplars.jsonl`, or `evidence/`), `router/`, `graph/`.
Evidence and a Bayes router are made here where they are missing. A graph is imported only if its own measurement turned
it on: `"enabled": true` in `graph.json`. `calibration/` is imported if it is there.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.local_stack.stack import PROJECT_ROOT
from services.shared.config import Settings
from services.shared.database.rows import ExpertRow, ExpertVersionRow, ReleaseRow
from services.shared.database.session import open_engine, session_factory
from services.shared.modeling.calibration import CALIBRATION_FILE
from services.shared.modeling.router_artifact import ROUTER_FILE, read_router_file
from services.shared.publishing import EXEMPLARS_FILE
from services.shared.registry import create_release, register_expert
from services.shared.release_activation import activate_release
from services.shared.schemas.sequences import AdapterReport
from services.shared.storage import Storage
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import read_examples
from services.trainer_worker.evidence import EvidenceMaker
from services.trainer_worker.publishing import publish_bayes_router
from services.trainer_worker.releases import Router

DEMO_FOLDER = PROJECT_ROOT / "demo"


def bootstrap_demo(settings: Settings, *, demo: Path = DEMO_FOLDER) -> str:
    """Import the demo unless there is a reason not to. Returns what was done or why not, as a sentence for a person."""
    if Path(settings.base_model).resolve() != (demo / "base").resolve():
        return f"Nothing to import: the base model is {settings.base_model}, not the demo."
    folders = [file.parent for file in sorted(demo.glob("experts/*/adapter_config.json"))]
    if not folders:
        return "Nothing to import: the demo has no experts. Build them with `adaptive-moe demo build`."
    engine = open_engine(settings.database, application_name="adaptive-moe bootstrap")
    try:
        with session_factory(engine).begin() as session:
            known = session.scalar(select(func.count()).select_from(ExpertRow))
            if known:
                return f"Nothing to import: {known} experts are registered."
            release = _DemoImport(session, settings, demo).run(folders)
            return f"Imported the demo: {', '.join(folder.name for folder in folders)}. {release.id} is active."
    finally:
        engine.dispose()


class _DemoImport:
    """One import within one transaction."""

    def __init__(self, session: Session, settings: Settings, demo: Path) -> None:
        from services.shared.modeling.base_model import base_fingerprint

        self._session = session
        self._settings = settings
        self._demo = demo
        self._storage = Storage(settings.storage.root)
        self._fingerprint = base_fingerprint(settings.base_model)
        router = demo / "router"
        self._router_folder = router if (router / ROUTER_FILE).exists() else None
        self._evidence = EvidenceMaker(
            settings=settings,
            storage=self._storage,
            tokenizer=load_tokenizer(settings.base_model, chat_template=settings.chat_template),
            fingerprint=self._fingerprint,
            tap_layer=read_router_file(router).tap_layer if self._router_folder else None,
        )

    def run(self, folders: Sequence[Path]) -> ReleaseRow:
        """Register the experts and activate a release of them."""
        reports = self._reports(folders)
        versions = [self._import_expert(folder, report) for folder, report in zip(folders, reports, strict=True)]
        router = self._router()
        release = create_release(
            self._session,
            base_model=self._settings.base_model,
            base_fingerprint=self._fingerprint,
            router_digest=router.digest,
            router_kind=router.kind,
            graph_digest=self._graph_digest(),
            version_ids=[version.id for version in versions],
            note="the demo",
            calibration_digest=self._calibration_digest(),
        )
        return activate_release(self._session, release.number, expected_active=None)

    def _reports(self, folders: Sequence[Path]) -> list[AdapterReport]:
        """What each adapter holds, after the same checks that an uploaded one passes."""
        from services.shared.modeling.adapter_files import check_adapter_folder
        from services.shared.modeling.base_model import empty_model
        from services.shared.modeling.wiring import BaseShapes

        shapes = BaseShapes.of(empty_model(self._settings.base_model))
        max_rank = self._settings.expert_service.max_rank
        return [
            check_adapter_folder(folder, shapes, max_rank=max_rank, base_fingerprint=self._fingerprint)
            for folder in folders
        ]

    def _import_expert(self, folder: Path, report: AdapterReport) -> ExpertVersionRow:
        with self._storage.stage() as staged:
            artifact = staged / folder.name
            shutil.copytree(folder, artifact)
            if not self._evidence.suffices(artifact):
                examples = read_examples(artifact / EXEMPLARS_FILE, filename=EXEMPLARS_FILE)
                self._evidence.write(artifact, examples)
            digest = self._storage.publish(artifact)
        return register_expert(
            self._session,
            name=folder.name,
            domain=folder.name,
            description=f"Demo expert for {folder.name}",
            digest=digest,
            report=report,
            has_evidence=True,
            source="imported",
        )

    def _router(self) -> Router:
        if self._router_folder is None:
            return publish_bayes_router(self._storage, self._settings.router, self._evidence.base_row())
        return Router(self._storage.publish(self._router_folder), read_router_file(self._router_folder).kind)

    def _graph_digest(self) -> str | None:
        description = self._demo / "graph" / "graph.json"
        if not description.exists() or not json.loads(description.read_text()).get("enabled", False):
            return None
        return self._storage.publish(description.parent)

    def _calibration_digest(self) -> str | None:
        folder = self._demo / "calibration"
        return self._storage.publish(folder) if (folder / CALIBRATION_FILE).exists() else None
