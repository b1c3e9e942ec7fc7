"""All settings: defaults here, a YAML file over them, environment variables over that.

Variables start with `AMOE_`, levels are parted by `__`: `AMOE_ROUTER__MAX_EXPERTS_PER_TOKEN=2`.
The YAML file is `config.yaml` in the working directory, or the one that `AMOE_CONFIG` names.
Settings are frozen and read once, in each process's `main`; nobody else reads the environment.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from services.shared.vocabulary import (
    MAX_LOGIT_BIASES,
    MAX_MESSAGES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_SEQUENCES,
    TEACHER_PATTERN,
    GateType,
    RouterKind,
)

MIN_GRACE_S: Final = 3600.0
"""Who publishes an artifact refers to it within the hour."""


class Section(BaseModel):
    """A frozen group of settings; unknown keys are refused so that a typo cannot pass silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DatabaseSettings(Section):
    """Postgres."""

    url: SecretStr = Field(
        default=SecretStr("postgresql+psycopg://amoe:amoe@127.0.0.1:5432/amoe"),
        description="postgresql://user:password@host:port/name; `adaptive-moe up` sets it for its own Postgres.",
    )
    pool_size: int = Field(default=5, ge=1, le=100, description="Connections kept per process.")
    connect_timeout_s: int = Field(
        default=5, ge=1, description="Seconds until a database that does not answer is down."
    )


class StorageSettings(Section):
    """Files and artifacts on disk; every service must see the same folder."""

    root: Path = Field(default=Path(".state/storage"), description="Shared folder of uploads and artifacts.")
    max_upload_bytes: int = Field(default=512 * 1024**2, ge=1024, description="Largest file accepted by upload.")
    garbage_grace_s: float = Field(
        default=24 * 3600.0,
        ge=MIN_GRACE_S,
        description="Artifacts and uploads that nothing refers to are kept for so long.",
    )
    collect_every_s: float = Field(
        default=6 * 3600.0, ge=0.0, description="How often a worker removes what is older than that; 0: never."
    )


class ReleaseSettings(Section):
    """What is asked of a release before it is served."""

    regression_tolerance: float = Field(
        default=0.02,
        ge=0.0,
        description="Nats per token that an evaluated release may be worse than the active one in any domain; "
        "one that is worse than that is activated only by force.",
    )
    max_archive_bytes: int = Field(
        default=8 * 1024**3, ge=1024, description="Largest archive of a release accepted by import."
    )


class RouterSettings(Section):
    """The gate and the training of routers. Names are those of the requirements."""

    kind: RouterKind = Field(default=RouterKind.BAYES, description="Router made when a release has none.")
    router_type: GateType = Field(
        default=GateType.THRESHOLD,
        description="threshold keeps scores above expert_selection_threshold, topk the max_experts_per_token best.",
    )
    expert_selection_threshold: float | None = Field(
        default=None,
        ge=0.0,
        lt=1.0,
        description="Keep experts that score above it. Default: 0.1 for posteriors (bayes), 0.3 for sigmoid scores.",
    )
    max_experts_per_token: int = Field(default=4, ge=1, le=64, description="Experts that may share one token.")
    capacity_factor: float = Field(
        default=1.25, gt=0.0, description="Training only: ceil(factor*T*K/E) tokens per expert."
    )
    load_balancing_weight: float = Field(
        default=0.01, ge=0.0, description="Learned routers: weight of the load-balancing loss."
    )
    z_loss_weight: float = Field(default=0.001, ge=0.0, description="Learned routers: weight of the router z-loss.")
    expert_label_weight: float = Field(
        default=0.0, ge=0.0, description="Learned routers: weight of the loss on known domains; 0 leaves it out."
    )
    use_router_bias: bool = Field(default=True, description="Learned routers: a bias per expert.")
    router_dropout: float = Field(default=0.1, ge=0.0, lt=1.0, description="Learned routers: dropout in training.")
    tap_layer: int = Field(default=0, ge=0, description="Trunk layers below the gate; 0 = bigram evidence only.")
    stickiness: float = Field(default=0.02, gt=0.0, lt=1.0, description="Chance per token that the domain changes.")
    temper: float = Field(default=0.3, gt=0.0, le=1.0, description="Exponent on each token's likelihood.")


ExpertUrl = Annotated[str, Field(pattern=r"^(https?|dns\+http)://[^/\s?#]+/?$")]


class RouterServiceSettings(Section):
    """The public service."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    expert_urls: tuple[ExpertUrl, ...] = Field(
        default=("http://127.0.0.1:8001",),
        min_length=1,
        description="Replicas of the expert service. `dns+http://expert:8001` is one at each address of the name, "
        "looked up again every 5 seconds.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="When set, every route but /live, /ready wants it as a bearer token."
    )
    request_timeout_s: float = Field(
        default=300.0, gt=0, description="Longest time for one answer, from arrival to the last token."
    )
    connect_timeout_s: float = Field(
        default=2.0, gt=0, description="Seconds until a replica that does not answer is down."
    )
    replica_silence_s: float = Field(
        default=15.0,
        gt=0,
        description="A replica that has not answered for so long is given up: what it has not begun goes elsewhere, "
        "and its streams end with an error.",
    )
    max_concurrent_requests: int = Field(
        default=256, ge=1, description="Requests being answered at once; more get 429."
    )
    max_prompt_bytes: int = Field(default=1024**2, ge=1024, description="Longest prompt in bytes of UTF-8.")
    max_body_bytes: int | None = Field(
        default=None, ge=1024, description="Largest JSON body. Default: six times max_prompt_bytes and 64 KiB."
    )
    max_json_depth: int = Field(default=64, ge=8, le=500, description="Levels of nesting in a JSON body.")
    max_choices: int = Field(
        default=16, ge=1, le=1024, description="Sequences that one request may ask for: its prompts times n or best_of."
    )
    max_messages: int = Field(default=1024, ge=1, le=MAX_MESSAGES, description="Messages of one chat.")
    max_new_tokens: int = Field(default=4096, ge=1, description="New tokens that a request may ask for.")
    max_stop_sequences: int = Field(default=16, ge=0, le=MAX_STOP_SEQUENCES, description="Stop strings of one request.")
    max_stop_characters: int = Field(
        default=256, ge=1, le=MAX_STOP_CHARACTERS, description="Longest stop string, in characters."
    )
    max_logit_bias: int = Field(default=1024, ge=0, le=MAX_LOGIT_BIASES, description="Tokens that logit_bias may name.")
    default_max_new_tokens: int = Field(
        default=100, ge=1, description="New tokens where a request does not say how many."
    )
    max_candidates: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Experts that may speak in one request; at most a replica's slots, fewer if not all fit.",
    )
    cascade_threshold: float = Field(
        default=-0.12,
        le=0.0,
        description="With `integration: cascade`: the base model's answer is given when the mean log-probability of "
        "its tokens is at least this, in nats. The default was measured on the demo; other base models want their own.",
    )
    max_unfinished_jobs: int = Field(
        default=100, ge=1, description="Jobs of one user that have not ended; more get 429. See `user` in POST /jobs."
    )
    catalog_poll_s: float = Field(default=0.5, gt=0, description="How soon another process's activation is seen.")
    request_log_queue: int = Field(
        default=4096, ge=1, description="Routing logs waiting to be written; more are dropped and counted."
    )
    measured_per_s: float = Field(
        default=1.0,
        ge=0.0,
        description="With a calibrated release every flagged prompt is read again for its loss, and at most so many "
        "ordinary ones a second (those of thirty seconds at once) beside them, to compare with.",
    )
    store_prompts: bool = Field(default=True, description="Keep prompt and answer text in the routing log.")
    dataset_hub_url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="Hugging Face hub that files of public datasets may be fetched from, such as "
        "https://huggingface.co. Default: none.",
    )
    adapter_folder: Path | None = Field(
        default=None,
        description="When set, POST /v1/load_lora_adapter imports adapters from folders below it; else it is off.",
    )


class ExpertServiceSettings(Section):
    """One replica of the serving engine."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8001, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    num_slots: int = Field(default=16, ge=1, description="Adapters resident at once.")
    slot_bytes: int = Field(default=2 * 1024**3, ge=1024, description="Byte budget of all resident adapters.")
    host_cache_bytes: int = Field(
        default=1024**3, ge=0, description="Byte budget of adapters kept in host memory for their next use."
    )
    max_rank: int = Field(default=256, ge=1, description="Highest LoRA rank accepted.")
    max_sequences: int = Field(default=16, ge=1, description="Sequences in one step.")
    max_waiting: int = Field(default=256, ge=0, description="Sequences that may wait; more get 429.")
    max_overtaken: int = Field(
        default=16,
        ge=0,
        description="Later sequences whose experts are at hand that may pass one that waits for slots; 0: none.",
    )
    max_context: int | None = Field(default=None, description="Default: the base model's own limit, at most 4096.")
    kv_cache_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="Bound on the memory of keys and values; sequences wait or are read again when it is reached. "
        "Default: max_sequences of full length, at most a quarter of the free memory (half of a GPU's).",
    )
    prefill_step_tokens: int = Field(
        default=512, ge=1, description="Prompt tokens per step, so decoding is not held up."
    )
    num_threads: int | None = Field(default=None, description="torch threads; default: all cores.")


class TrainerSettings(Section):
    """The Celery worker and its jobs."""

    lease_s: float = Field(
        default=15.0, gt=0, description="A running job without a heartbeat for so long is run again."
    )
    heartbeat_s: float = Field(default=3.0, gt=0, description="How often a running job renews its lease.")
    reap_every_s: float = Field(default=5.0, gt=0, description="How often lost jobs and messages are looked for.")
    max_attempts: int = Field(default=3, ge=1, description="Runs of a job before it fails for good.")
    num_threads: int | None = Field(default=None, ge=1, description="torch threads of a job; default: all cores.")
    num_processes: int = Field(
        default=1,
        ge=1,
        description="Processes, one a GPU, that train one expert together, started with `accelerate launch`.",
    )
    celery_queue: str = Field(default="cpu", description="Queue that jobs are sent to and this worker takes from.")
    traced_models: Path | None = Field(
        default=None,
        description="When set, jobs of kind trace may load native mixture-of-experts models from folders below it; "
        "else they trace our own mixture only. Router service and worker must see the same folder.",
    )


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


RegularExpression = Annotated[str, AfterValidator(_compiles)]


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class GapSettings(Section):
    """Gaps: what the mixture is asked for and cannot answer well."""

    analyse_every_s: float = Field(
        default=3600.0,
        ge=0.0,
        description="How often a gap_analysis job is submitted by itself, if requests were flagged since; 0: never.",
    )
    flagged_band: tuple[Share, Share] = Field(
        default=(0.01, 0.5),
        description="Lowest and highest share of flagged requests that is as expected; GET /health/report says when it "
        "drifts out. The requirements' 0.1 to 0.5 suits a system that flags a tenth of what it knows; a calibration "
        "flags a twentieth, by default.",
    )
    redact: tuple[RegularExpression, ...] = Field(
        default=(r"[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+", r"\d(?:[ -]?\d){7,}"),
        description="Regular expressions: what they match in a prompt is `[redacted]` in a gap's report. Default: "
        "e-mail addresses, and eight digits or more.",
    )


class TeacherSettings(Section):
    """An OpenAI-compatible endpoint that writes examples for new experts; redirects are not followed."""

    url: str = Field(
        pattern=r"^https?://[^/\s?#@]+(/[^\s?#]*)?$",
        description="Its API, as OpenAI's clients take it: https://api.example.com/v1.",
    )
    model: str = Field(min_length=1, description="The model to ask there.")
    api_key: SecretStr | None = Field(default=None, description="Sent as a bearer token.")
    temperature: float = Field(default=1.0, ge=0.0, le=2.0, description="Above 0, or answers repeat each other.")
    max_tokens: int = Field(default=4096, ge=64, description="Of one answer.")
    examples_per_request: int = Field(default=20, ge=1, le=200, description="Asked for at once.")
    connect_timeout_s: float = Field(default=5.0, gt=0, description="Seconds until one that does not answer is away.")
    timeout_s: float = Field(default=120.0, gt=0, description="Of one answer, from the request to its last byte.")
    max_response_bytes: int = Field(default=4 * 1024**2, ge=1024, description="Larger answers are not read.")
    max_attempts: int = Field(default=5, ge=1, le=20, description="Per request, where the endpoint is away or busy.")
    backoff_s: float = Field(default=1.0, ge=0.0, description="Before the second attempt; doubled before each other.")
    budget_s: float = Field(default=1800.0, gt=0, description="For all requests of one job's attempt together.")


class TraceSettings(Section):
    """Traces of routing, and what is accepted where others recorded them."""

    max_upload_bytes: int = Field(
        default=4 * 1024**3,
        ge=1024,
        description="Largest POST /traces, and largest file in it: llama.cpp's have 2 GiB.",
    )
    max_unpacked_bytes: int = Field(
        default=32 * 1024**3, ge=1024, description="Of all files of an archive together; ranges of zeros take no disk."
    )
    max_files: int = Field(default=20_000, ge=1, description="Of one import, those in archives counted singly.")
    max_json_bytes: int = Field(
        default=64 * 1024**2, ge=1024, description="Largest JSON file; JSON lines may be larger."
    )
    max_line_bytes: int = Field(default=1024**2, ge=256, description="Longest line of JSON lines.")
    max_choices: int = Field(default=500_000_000, ge=1, description="Chosen experts of one trace, over all layers.")
    max_sequences: int = Field(default=100_000, ge=1, description="Sequences of one trace.")


class TelemetrySettings(Section):
    """Logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level to log.")
    format: Literal["auto", "human", "json"] = Field(
        default="auto", description="auto: human on a terminal, JSON otherwise."
    )
    file: Path | None = Field(default=None, description="Also write JSON lines here, rotated.")
    max_bytes: int = Field(default=20 * 1024**2, ge=1024, description="Size at which the file is rotated.")
    backups: int = Field(default=3, ge=0, description="Rotated files that are kept.")


class Settings(BaseSettings):
    """Everything a process needs to know to start."""

    model_config = SettingsConfigDict(
        env_prefix="AMOE_", env_nested_delimiter="__", frozen=True, extra="forbid", protected_namespaces=()
    )

    base_model: str = Field(default="demo/base", description="Local folder or hub id of a Hugging Face causal LM.")
    chat_template: Path | None = Field(
        default=None,
        description="Jinja file used instead of the base model's chat template. A base model that has none gets "
        "`role: content` lines.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Of the base model's weights."
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(default="none", description="bitsandbytes; needs a GPU.")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="Celery's broker: Valkey or Redis."
    )
    database: DatabaseSettings = DatabaseSettings()
    storage: StorageSettings = StorageSettings()
    releases: ReleaseSettings = ReleaseSettings()
    router: RouterSettings = RouterSettings()
    router_service: RouterServiceSettings = RouterServiceSettings()
    expert_service: ExpertServiceSettings = ExpertServiceSettings()
    trainer: TrainerSettings = TrainerSettings()
    gaps: GapSettings = GapSettings()
    traces: TraceSettings = TraceSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    teachers: dict[Annotated[str, Field(pattern=TEACHER_PATTERN)], TeacherSettings] = Field(
        default={},
        description="Endpoints that jobs of kind expert_creation may ask for examples, by a name of your own.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over YAML over defaults."""
        yaml_file = Path(os.environ.get("AMOE_CONFIG", "config.yaml"))
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=yaml_file))
