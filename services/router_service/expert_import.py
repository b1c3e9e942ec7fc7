"""An adapter that somebody brings: staged, published, verified by a replica, and only then registered."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from sqlalchemy.orm import Session

from services.router_service.release_making import extend_release, refuse_hopeless_extension
from services.router_service.replicas import Replicas
from services.router_service.transactions import Transactions, plain_text
from services.router_service.uploads import room_on_disk, write_upload
from services.shared.database.rows import ExpertVersionRow, ReleaseRow
from services.shared.errors import InvalidAdapter, InvalidDataset, InvalidRequest
from services.shared.garbage import withdraw_artifact
from services.shared.publishing import add_evidence
from services.shared.registry import register_expert
from services.shared.release_activation import activate_release
from services.shared.schemas.sequences import AdapterReport, BaseModelInfo
from services.shared.storage import Published, Storage
from services.shared.tokenizer import Tokenizer
from services.shared.training_text import read_examples

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MAX_CONFIG_BYTES: Final = 1024**2
MAX_EXEMPLAR_BYTES: Final = 64 * 1024**2
_CODE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})


@dataclass(frozen=True)
class UploadedFile:
    """A part of a multipart body."""

    filename: str
    content: BinaryIO


@dataclass(frozen=True)
class ExpertUpload:
    """What a client sends to import an expert."""

    name: str
    domain: str | None
    description: str
    files: Sequence[UploadedFile]
    exemplars: UploadedFile | None
    add_to_release: bool
    activate: bool


@dataclass(frozen=True)
class ImportResult:
    """The registered version, and the release made with it."""

    version: ExpertVersionRow
    release: str | None


class ExpertImport:
    """Takes uploads all the way into the registry, or leaves nothing registered."""

    def __init__(
        self,
        *,
        transactions: Transactions,
        storage: Storage,
        tokenizer: Tokenizer,
        replicas: Replicas,
        max_upload_bytes: int,
        check_release: Callable[[ReleaseRow], object],
    ) -> None:
        self._transactions = transactions
        self._storage = storage
        self._tokenizer = tokenizer
        self._replicas = replicas
        self._max_upload_bytes = max_upload_bytes
        self._check_release = check_release

    async def run(self, upload: ExpertUpload) -> ImportResult:
        """Register `upload` as the next version of its expert. InvalidAdapter or InvalidDataset say what is wrong."""
        parts = adapter_parts(upload.files)
        hosted = self._replicas.base
        if upload.add_to_release:
            has_evidence = upload.exemplars is not None
            await self._transactions.run(
                refuse_hopeless_extension, expert=upload.name, has_evidence=has_evidence, hosted=hosted
            )
        published = await asyncio.to_thread(self._publish, parts, upload.exemplars)
        try:
            report = await self._replicas.check_adapter(published.digest)
        except InvalidAdapter:
            await self._transactions.run(withdraw_artifact, self._storage, published)
            raise
        return await self._transactions.run(self._register, upload, published.digest, report, hosted)

    def _publish(self, parts: Mapping[str, UploadedFile], exemplars: UploadedFile | None) -> Published:
        with room_on_disk(), self._storage.stage() as staged:
            folder = staged / "expert"
            folder.mkdir()
            for name, part in parts.items():
                limit = MAX_CONFIG_BYTES if name == CONFIG_FILE else self._max_upload_bytes
                write_upload(part.content, folder / name, max_bytes=limit, what=name)
            _refuse_no_json(folder / CONFIG_FILE)
            if exemplars is not None:
                self._add_evidence(folder, staged / "exemplars", exemplars)
            return self._storage.put(folder)

    def _add_evidence(self, folder: Path, copy: Path, exemplars: UploadedFile) -> None:
        write_upload(exemplars.content, copy, max_bytes=MAX_EXEMPLAR_BYTES, what="exemplars")
        try:
            examples = read_examples(
                copy, filename=exemplars.filename, chat_template=self._tokenizer.apply_chat_template
            )
        except InvalidDataset as error:
            raise InvalidDataset(error.message, param="exemplars") from error
        add_evidence(folder, examples=examples, tokenizer=self._tokenizer)

    def _register(
        self, session: Session, upload: ExpertUpload, digest: str, report: AdapterReport, hosted: BaseModelInfo | None
    ) -> ImportResult:
        if hosted is not None and report.base_fingerprint != hosted.fingerprint:
            raise InvalidRequest("The base model was changed during the import: try again.", param="files")
        version = register_expert(
            session,
            name=upload.name,
            domain=plain_text(upload.domain),
            description=plain_text(upload.description),
            digest=digest,
            report=report,
            has_evidence=upload.exemplars is not None,
            source="imported",
        )
        release = None
        if upload.add_to_release:
            row, active_number = extend_release(session, version.id, expert=upload.name, hosted=hosted)
            self._check_release(row)
            release = row.id
            if upload.activate:
                activate_release(session, row.number, expected_active=active_number)
        return ImportResult(version, release)


def adapter_parts(files: Sequence[UploadedFile]) -> dict[str, UploadedFile]:
    """The two files of a PEFT adapter by name; InvalidAdapter for anything else, above all for what can hold code."""
    parts: dict[str, UploadedFile] = {}
    for part in files:
        if Path(part.filename).suffix.lower() in _CODE_SUFFIXES:
            raise InvalidAdapter(
                f"{part.filename} is a format that can run code when it is read: save the adapter as safetensors "
                "(`model.save_pretrained(folder)` does) and send adapter_model.safetensors.",
                param="files",
            )
        if part.filename not in (CONFIG_FILE, WEIGHTS_FILE) or part.filename in parts:
            raise InvalidAdapter(
                f"{part.filename} is not expected: `files` are {CONFIG_FILE} and {WEIGHTS_FILE}, each once.",
                param="files",
            )
        parts[part.filename] = part
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in parts]
    if missing:
        raise InvalidAdapter(
            f"{' and '.join(missing)} is missing: PEFT saves both in the adapter's folder.", param="files"
        )
    return parts


def _refuse_no_json(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{CONFIG_FILE} is not a JSON object: send the one that PEFT wrote.", param="files")
