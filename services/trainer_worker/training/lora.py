"""A frozen base model with one fresh LoRA adapter, and the adapter's files."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from services.shared.errors import InvalidRequest
from services.shared.schemas.jobs import ExpertHyperparameters

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_base(base_model: str, mixed_precision: str) -> PreTrainedModel:
    """The base model for training: float32, or frozen in the half precision that the step computes in."""
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise InvalidRequest(
            "mixed_precision 'fp16' needs a GPU, and this worker has none: use 'bf16' or 'no'.",
            param="hyperparameters.mixed_precision",
        )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base_model, dtype=_DTYPES[mixed_precision], use_safetensors=True
    )
    model.config.use_cache = False
    return model


def add_lora(model: PreTrainedModel, hyperparameters: ExpertHyperparameters, *, base_name: str) -> PeftModel:
    """`model` with one fresh adapter, initialised from torch's present random state; all else is frozen."""
    targets = hyperparameters.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=hyperparameters.rank,
        lora_alpha=_whole(hyperparameters.alpha),
        lora_dropout=hyperparameters.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=hyperparameters.use_rslora,
        bias="none",
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 for an attribute that has a new name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise InvalidRequest(
            f"target_modules {targets!r} cannot carry LoRA in this base model ({error}). "
            f"Use 'all-linear' or some of: {', '.join(_linear_names(model))}.",
            param="hyperparameters.target_modules",
        ) from error
    assert isinstance(peft_model, PeftModel)
    peft_model.peft_config["default"].base_model_name_or_path = base_name
    return peft_model


def _whole(alpha: float) -> int:
    """As an int where it is one, since other readers of adapter_config.json expect that."""
    return int(alpha) if alpha == int(alpha) else alpha  # type: ignore[return-value]  # any number works in PEFT


def _linear_names(model: PreTrainedModel) -> list[str]:
    output = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not output
        }
    )


def neutral_base_name(base_model: str) -> str:
    """What an adapter may say about its base: the hub id or relative name, of an absolute path only the last part."""
    return Path(base_model).name if Path(base_model).is_absolute() else base_model


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Write the two PEFT files, the same bytes for the same adapter: no model card, names in order."""
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors makes it private; other services read it
    config_file = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(config_file.read_text())
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
