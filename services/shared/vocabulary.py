"""The words every part of the system uses for states and kinds. One idea, one word (docs/GLOSSARY.md)."""

from enum import StrEnum
from typing import Final

BASE: Final = "base"
"""The base model's own name wherever experts are named: in plans, gates and attributions."""

UNKNOWN: Final = "unknown"
"""The domain of a request that a calibrated release does not know; no domain has it for a name."""

MAX_NAME_LENGTH: Final = 64
NAME_PATTERN: Final = r"^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?$"
"""Names of experts: lower case, digits, `_`, `-`; 1-64 characters. `base` is reserved."""

DIGEST_PATTERN: Final = r"^[0-9a-f]{64}$"
"""SHA-256 in hexadecimal: the name of an artifact in content-addressed storage."""

TEACHER_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names that an operator gives teachers."""

DEMO_TEACHER_PREFIX: Final = "demo:"
"""Before the name of a demo domain: its own generator is the teacher."""

MAX_STOP_SEQUENCES: Final = 64
MAX_STOP_CHARACTERS: Final = 1024
MAX_LOGIT_BIASES: Final = 65_536
MAX_TOP_LOGPROBS: Final = 20
MAX_MESSAGES: Final = 4096
"""What one request may hold at all; the router service's settings allow less."""


class PlanMode(StrEnum):
    """Who decides which experts speak."""

    ROUTED = "routed"  # the release's router, token by token
    FIXED = "fixed"  # the request: one expert, or a set with weights
    BASE = "base"  # nobody: the base model alone


class FinishReason(StrEnum):
    """Why a sequence ended; the first three are TGI's words."""

    LENGTH = "length"
    EOS_TOKEN = "eos_token"
    STOP_SEQUENCE = "stop_sequence"
    CANCELLED = "cancelled"
    ERROR = "error"


class RouterKind(StrEnum):
    """How gate scores come about (DESIGN D2)."""

    BAYES = "bayes"
    LEARNED = "learned"


class GateType(StrEnum):
    """Which scores are kept (the requirements' `router_type`)."""

    THRESHOLD = "threshold"
    TOPK = "topk"


class EvidenceKind(StrEnum):
    """What an expert's evidence model reads."""

    BIGRAM = "bigram"
    TRUNK = "trunk"


class VersionStatus(StrEnum):
    """Life of an expert version and of a release."""

    STAGED = "staged"
    ACTIVE = "active"
    RETIRED = "retired"


class ReplicaState(StrEnum):
    """Whether a replica is given sequences."""

    UP = "up"
    DRAINING = "draining"  # ends those that it has, takes no others
    DOWN = "down"  # did not answer when last asked


class GapStatus(StrEnum):
    """Life of a gap; only an open one can be dismissed, merged or closed."""

    OPEN = "open"
    DISMISSED = "dismissed"  # by a person: it does not come back
    MERGED = "merged"  # its requests are another gap's
    CLOSED = "closed"  # an expert was released for it


class TraceStatus(StrEnum):
    """Life of a trace; the last two are final."""

    IMPORTING = "importing"  # its job has not ended
    READY = "ready"
    FAILED = "failed"  # its job failed or was cancelled


class JobKind(StrEnum):
    """What a job makes."""

    EXPERT = "expert"
    ROUTER = "router"
    IMAGE_COOPERATION = "image_cooperation"
    EVALUATION = "evaluation"
    COOPERATION_GRAPH = "cooperation_graph"
    GAP_ANALYSIS = "gap_analysis"
    CALIBRATION = "calibration"
    EXPERT_CREATION = "expert_creation"
    TRACE_IMPORT = "trace_import"
    TRACE = "trace"


class JobQueue(StrEnum):
    """Which workers may take a job: those on machines without a GPU, or with one."""

    CPU = "cpu"
    GPU = "gpu"


class JobStatus(StrEnum):
    """Life of a job; the last three are final."""

    QUEUED = "queued"
    VALIDATING = "validating"  # a worker has it and looks whether it can be run
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when nothing can change any more."""
        return self in FINAL_JOB_STATUSES

    @property
    def is_held(self) -> bool:
        """True while a worker has it."""
        return self in HELD_JOB_STATUSES


FINAL_JOB_STATUSES: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
HELD_JOB_STATUSES: Final = frozenset({JobStatus.VALIDATING, JobStatus.RUNNING})
"""A worker has the job, under a lease."""


def model_name(base_model: str) -> str:
    """A folder's name or a hub id: enough to tell models apart; where a folder lies is nobody's business."""
    parts = base_model.replace("\\", "/").rstrip("/").split("/")
    is_hub_id = len(parts) == 2 and all(parts) and not parts[0].startswith(".")
    return base_model if is_hub_id else parts[-1]
