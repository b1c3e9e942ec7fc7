"""The base model: loaded once, frozen, named by a fingerprint of its files.

Weights come as safetensors only and no code of the model's authors is run. Engine and trainer load through here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from services.shared.config import Settings
from services.shared.errors import InvalidRequest
from services.shared.modeling.base_fingerprint import base_fingerprint, weight_files
from services.shared.tokenizer import Tokenizer, load_tokenizer, max_context_of

__all__ = ["LoadedBase", "base_fingerprint", "choose_device", "empty_model", "load_base_model"]

MAX_CONTEXT_DEFAULT: Final = 4096
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedBase:
    """A base model ready to serve or to train adapters on."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    fingerprint: str
    max_context: int
    device: torch.device
    dtype: torch.dtype
    num_parameters: int
    """Shared ones counted once."""


def load_base_model(settings: Settings) -> LoadedBase:
    """The configured base model, frozen and in eval mode. Raises InvalidRequest saying which setting to change."""
    name = settings.base_model
    device = choose_device(settings.device)
    tokenizer = load_tokenizer(name, chat_template=settings.chat_template)
    model = _load_weights(settings, device)
    model.requires_grad_(requires_grad=False)
    model.train(mode=False)
    return LoadedBase(
        name=name,
        model=model,
        tokenizer=tokenizer,
        fingerprint=base_fingerprint(name),
        max_context=_max_context(settings, model),
        device=device,
        dtype=_DTYPES[settings.dtype],
        num_parameters=model.num_parameters(),
    )


def empty_model(path_or_id: str) -> PreTrainedModel:
    """The model's modules without memory for weights (`meta` device): enough to check an adapter's shapes."""
    config = AutoConfig.from_pretrained(path_or_id, trust_remote_code=False)
    build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        return build(config)


def choose_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where there is one; anything named must exist."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InvalidRequest(f"device {wanted!r} is unknown; use auto, cpu, cuda or cuda:N.", param="device") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InvalidRequest(f"device {wanted!r} is not there; set device to auto or cpu.", param="device")
    return device


def _load_weights(settings: Settings, device: torch.device) -> PreTrainedModel:
    """`from_pretrained` with safe defaults, its failures put into words."""
    weight_files(settings.base_model)  # a clear refusal before transformers tries other formats
    arguments: dict[str, Any] = {"dtype": _DTYPES[settings.dtype], "use_safetensors": True, "trust_remote_code": False}
    quantization = _quantization(settings, device)
    if quantization is not None:
        arguments |= {"quantization_config": quantization, "device_map": {"": device}}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(settings.base_model, **arguments)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(
            f"The base model {settings.base_model!r} cannot be loaded: {error}. Set base_model to a local folder or "
            "hub id of a Hugging Face causal language model with safetensors weights.",
            param="base_model",
        ) from error
    if quantization is None:
        nn.Module.to(model, device)
    return model


def _quantization(settings: Settings, device: torch.device) -> Any | None:
    """bitsandbytes where it can work, a refusal that names the setting where it cannot."""
    if settings.quantization == "none":
        return None
    if device.type != "cuda":
        raise InvalidRequest(
            f"quantization={settings.quantization!r} needs an NVIDIA GPU and this process runs on {device.type}. "
            "Set quantization to none, or device to a CUDA device.",
            param="quantization",
        )
    try:
        import bitsandbytes  # noqa: F401  # only to say clearly that it is missing
    except ImportError as error:
        raise InvalidRequest(
            f"quantization={settings.quantization!r} needs bitsandbytes: pip install 'adaptive-moe[gpu]', "
            "or set quantization to none.",
            param="quantization",
        ) from error
    from transformers import BitsAndBytesConfig

    make_config: Callable[..., Any] = BitsAndBytesConfig
    if settings.quantization == "8bit":
        return make_config(load_in_8bit=True)
    return make_config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=_DTYPES[settings.dtype])


def _max_context(settings: Settings, model: PreTrainedModel) -> int:
    """The configured context, which must not exceed the model's own; default: the model's, at most 4,096."""
    own = max_context_of(model.config.to_dict())
    wanted = settings.expert_service.max_context
    if wanted is not None and own is not None and wanted > own:
        raise InvalidRequest(
            f"expert_service.max_context is {wanted}, but the base model ends at {own}; set at most {own}.",
            param="expert_service.max_context",
        )
    return wanted or min(own or MAX_CONTEXT_DEFAULT, MAX_CONTEXT_DEFAULT)
