"""A frozen base model with one fresh LoRA adapter, and the adapter's files."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
)
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from services.shared.errors import InvalidRequest
from services.shared.modeling.wiring import linear_shape
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.trainer_worker.training.hardware import refuse_what_is_missing

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_base(base_model: str, hyperparameters: ExpertHyperparameters) -> PreTrainedModel:
    """The base model for training: float32, or frozen in the half precision that the step computes in, or quantized.

    Quantized as in QLoRA (Dettmers et al. 2023, section 3): NormalFloat of 4 bits with its constants quantized again,
    or LLM.int8 (2022); passes are computed in half precision.
    """
    refuse_what_is_missing(hyperparameters)
    dtype = _DTYPES[hyperparameters.mixed_precision]
    options: dict[str, Any] = {}
    if hyperparameters.quantization != "none":
        dtype = torch.bfloat16 if dtype == torch.float32 else dtype
        options = {
            "quantization_config": _quantization(hyperparameters.quantization, dtype),
            "device_map": {"": torch.cuda.current_device()},
        }
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base_model, dtype=dtype, use_safetensors=True, **options
    )
    if options:
        # Norms in float32, and inputs that gradients can reach; checkpointing is the Trainer's to switch on.
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model.config.use_cache = False
    return model


def _quantization(bits: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def add_lora(model: PreTrainedModel, hyperparameters: ExpertHyperparameters, *, base_name: str) -> PeftModel:
    """`model` with one fresh adapter, initialised from torch's present random state; all else is frozen."""
    layers = _existing_layers(model, hyperparameters.layers_to_transform)
    targets = hyperparameters.target_modules
    if layers is not None and targets == "all-linear":
        targets = tuple(_linear_names(model))  # PEFT takes layers only beside a list of names
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=hyperparameters.rank,
        lora_alpha=_whole(hyperparameters.alpha),
        lora_dropout=hyperparameters.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        layers_to_transform=layers,
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


def _existing_layers(model: PreTrainedModel, layers: tuple[int, ...] | None) -> list[int] | None:
    """As PEFT takes them; None for all. It would pass over layers that do not exist, so they are refused here."""
    if layers is None:
        return None
    num_layers: int = model.config.get_text_config().num_hidden_layers
    missing = sorted(layer for layer in layers if layer >= num_layers)
    if missing:
        raise InvalidRequest(
            f"layers_to_transform names {missing}, but the base model has layers 0 to {num_layers - 1}.",
            param="hyperparameters.layers_to_transform",
        )
    return sorted(set(layers))


def _whole(alpha: float) -> int:
    """As an int where it is one, since other readers of adapter_config.json expect that."""
    return int(alpha) if alpha == int(alpha) else alpha  # type: ignore[return-value]  # any number works in PEFT


def _linear_names(model: PreTrainedModel) -> list[str]:
    output = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if linear_shape(module) is not None and module is not output
        }
    )


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Write the two PEFT files, the same bytes for the same adapter.

    Not by save_pretrained: the model card that it adds takes most of its time, and its lists have no order.
    """
    weights = folder / "adapter_model.safetensors"
    save_file(get_peft_model_state_dict(model, save_embedding_layers=False), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private; other services read it
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)  # sets of names, in order
    (folder / "adapter_config.json").write_text(text + "\n")
