"""The specification of an evaluation: what a release is worth on held-out text."""

from typing import Annotated, Final, Literal

from pydantic import Field

from services.shared.errors import InvalidRequest
from services.shared.schemas.job_spec import FileId, JobSpecBase, ReleaseId, Spec, refuse_repeated
from services.shared.vocabulary import JobKind

EvidenceSum = Literal["bigram", "trunk", "bigram+trunk"]
DomainName = Annotated[str, Field(min_length=1, max_length=200)]
PeerName = Literal["arrow", "x_lora", "multi_task"]
_TRAINED_PEERS: Final = ("x_lora", "multi_task")


class MultiTaskTraining(Spec):
    """Of one adapter on everybody's text; its rank and scale are those of all experts together."""

    learning_rate: float = Field(default=2e-4, gt=0.0, le=1.0)
    batch_size: int = Field(default=8, ge=1, le=1024)
    num_epochs: float = Field(default=3.0, gt=0.0, le=1000.0)
    max_steps: int | None = Field(
        default=None, ge=1, description="For a fair comparison: as many as all experts' trainings took together."
    )
    max_length: int = Field(default=256, ge=8, le=131072)


class XLoraTraining(Spec):
    """Of X-LoRA's classifier, on documents of which half switch their domain; the experts stay as they are."""

    num_steps: int = Field(default=300, ge=1, le=1_000_000)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    batch_size: int = Field(default=8, ge=1, le=1024)
    max_length: int = Field(default=256, ge=8, le=131072)


class EvaluationJobSpec(JobSpecBase):
    """Read held-out text under a release, its single experts and what they are compared with."""

    kind: Literal[JobKind.EVALUATION] = JobKind.EVALUATION
    release: ReleaseId | None = Field(default=None, description="Default: the active one.")
    held_out: dict[DomainName, FileId] = Field(
        min_length=1,
        max_length=256,
        description="Text that no expert was trained on, by the name of its expert, or by the domain of one.",
    )
    unknown_file: FileId | None = Field(default=None, description="Text that belongs to no expert.")
    thresholds: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] = Field(
        default=(0.02, 0.05, 0.1, 0.2, 0.35, 0.5),
        max_length=16,
        description="Of a threshold gate, one after the other.",
    )
    top_ks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(1, 2, 3, 4), max_length=16, description="Columns that a top-k gate keeps, one after the other."
    )
    stickinesses: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = Field(
        default=(0.005, 0.05),
        max_length=16,
        description="Chances per token that the domain changes, for the router's filter, one after the other.",
    )
    tempers: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        default=(0.15, 0.6), max_length=16, description="Tempers of the router's filter, one after the other."
    )
    evidence: tuple[EvidenceSum, ...] = Field(
        default=("bigram", "trunk", "bigram+trunk"),
        description="What a Bayes router's filter hears, one after the other. A sum that the release uses keeps its "
        "weights, others have those that routers are made with.",
    )
    tap_layers: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = Field(
        default=(),
        max_length=16,
        description="Layers of the base model after which trunk evidence reads, one after the other. Default: where "
        "the release's router does, if it does. Evidence that experts lack at a layer is made of their text in "
        "training_files, or else of the exemplars that they carry.",
    )
    peers: tuple[PeerName, ...] = Field(
        default=(),
        description="What else is compared: PEFT Arrow and PEFT X-LoRA over the same experts, one adapter trained on "
        "all text. The last two are trained first, which costs time.",
    )
    training_files: dict[DomainName, FileId] = Field(
        default={},
        max_length=256,
        description="What peers are trained on, and trunk evidence is made of, by domain as in held_out.",
    )
    peer_seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=20,
        description="Peers that are trained are trained once with each, and the documents of `seeds` are read by them "
        "in turn. Default: `seeds`, one for each; one seed costs a third of three, and tells nothing of chance.",
    )
    multi_task: MultiTaskTraining = MultiTaskTraining()
    x_lora: XLoraTraining = XLoraTraining()
    without_each: bool = Field(default=True, description="Take each expert out of the release and add it back.")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        default=(0, 1, 2), min_length=1, max_length=20, description="Each draws documents and pairs of its own."
    )
    max_documents: int = Field(default=48, ge=2, le=10_000, description="Per domain and seed.")
    max_switching_documents: int = Field(
        default=120, ge=2, le=10_000, description="Documents that change their domain half-way, per seed."
    )
    max_tokens: int = Field(default=256, ge=32, le=131_072, description="Of a document; the rest is not read.")

    def named_files(self) -> dict[str, str]:
        """Held-out text, what peers are trained on, and text of no known domain."""
        named = {f"held_out.{domain}": file_id for domain, file_id in self.held_out.items()}
        named |= {f"training_files.{domain}": file_id for domain, file_id in self.training_files.items()}
        return named | ({"unknown_file": self.unknown_file} if self.unknown_file is not None else {})

    @property
    def trained_peers(self) -> tuple[PeerName, ...]:
        """Those of the peers that are trained."""
        return tuple(peer for peer in self.peers if peer in _TRAINED_PEERS)

    @property
    def each_peer_seed(self) -> tuple[int, ...]:
        """What each of them is trained with."""
        return self.peer_seeds or self.seeds

    def named_release(self) -> str | None:
        """The release, where one is named."""
        return self.release

    def check(self) -> None:
        """Nothing twice; text for what is made of it, and for nobody else."""
        refuse_repeated(
            thresholds=self.thresholds,
            top_ks=self.top_ks,
            stickinesses=self.stickinesses,
            tempers=self.tempers,
            evidence=self.evidence,
            tap_layers=self.tap_layers,
            peers=self.peers,
            seeds=self.seeds,
            peer_seeds=self.peer_seeds or (),
        )
        if self.peer_seeds is not None and len(self.peer_seeds) > len(self.seeds):
            raise InvalidRequest(
                f"{len(self.peer_seeds)} peer_seeds, but only {len(self.seeds)} sets of documents for their peers to "
                "read: name as many seeds, or fewer peer_seeds.",
                param="peer_seeds",
            )
        if self.tap_layers and not any("trunk" in one for one in self.evidence):
            raise InvalidRequest("tap_layers are of trunk evidence: name it under evidence.", param="tap_layers")
        self._check_training_files()

    def _check_training_files(self) -> None:
        trained = self.trained_peers
        if trained and not set(self.training_files) >= set(self.held_out):
            raise InvalidRequest(
                f"{' and '.join(trained)} must be trained: training_files needs a file for each domain of held_out.",
                param="training_files",
            )
        if not self.tap_layers and trained and set(self.training_files) != set(self.held_out):
            raise InvalidRequest(
                "training_files names a domain that held_out does not: nothing would be made of its text.",
                param="training_files",
            )
        if self.training_files and not trained and not self.tap_layers:
            raise InvalidRequest(
                f"training_files are for the peers {' and '.join(_TRAINED_PEERS)} and for tap_layers: name one of them "
                "under peers, or a layer, or leave the files out.",
                param="training_files",
            )
