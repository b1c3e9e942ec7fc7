"""`adapter_config.json` of PEFT: which modules, ranks and scalings; features we cannot honour are refused by name.

Semantics follow PEFT 0.21 (`tuners_utils.check_target_module_exists`, `utils.other.get_pattern_key`,
`lora.layer.update_layer`); a test holds them against the installed PEFT. Patterns come from strangers, so they are
matched under a time limit.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import regex  # type: ignore[import-untyped]

from services.shared.errors import InvalidAdapter
from services.shared.modeling.safetensors_header import open_weights

CONFIG_FILE: Final = "adapter_config.json"
_MAX_CONFIG_BYTES = 1024**2
_MAX_PATTERN_LENGTH = 1000
_MAX_PATTERNS = 1024
_MATCH_TIMEOUT_S = 0.05

_UNSUPPORTED: Final[Mapping[str, str]] = {
    "auto_map": "auto_map points to code; code in adapters is never run. Remove it",
    "modules_to_save": "modules_to_save replaces whole modules of the base model. Train with modules_to_save=None",
    "use_dora": "DoRA is not supported yet. Train it as plain LoRA (use_dora=False)",
    "lora_bias": "lora_bias adds biases. Train with lora_bias=False",
    "use_qalora": "QALoRA is not supported. Train it as plain LoRA",
    "use_bdlora": "block-diagonal LoRA is not supported. Train it as plain LoRA",
    "trainable_token_indices": "trainable_token_indices changes the embedding. Train without it",
    "layer_replication": "layer_replication changes the base model's layers. Train without it",
    "target_parameters": "target_parameters adapts bare parameters. Target linear modules instead",
    "alora_invocation_tokens": "activated LoRA (aLoRA) switches itself on in mid-text. Train it as plain LoRA",
    "kasa_config": "KaSA is not supported. Train it as plain LoRA",
    "monteclora_config": "MonteCLoRA is not supported. Train it as plain LoRA",
    "velora_config": "VeLoRA is not supported. Train it as plain LoRA",
    "arrow_config": "an Arrow router is not an expert. Send the expert adapters themselves",
    "enable_lora": "enable_lora (LoRA on parts of a fused projection) is no longer a PEFT feature. Train it again",
}
_HEADS: Final = ("lm_head", "embed_out")
_PLAIN_INITS: Final = (True, False, None, "gaussian", "orthogonal", "eva")


class ModulePattern(NamedTuple):
    """A value for the modules whose name ends as the pattern says."""

    pattern: "regex.Pattern[str]"
    value: float


@dataclass(frozen=True)
class LoraSettings:
    """The part of the config that decides what the weights mean."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: tuple["ModulePattern", ...]
    alpha_pattern: tuple["ModulePattern", ...]
    target_modules: str | frozenset[str] | None
    exclude_modules: str | frozenset[str]
    layer_indexes: frozenset[int]
    layers_patterns: tuple[str, ...]
    made_for: str

    def rank_of(self, module: str) -> int:
        """The rank that PEFT would give this module."""
        return int(_first_value(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732)."""
        alpha = _first_value(self.alpha_pattern, module, self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether PEFT would put an adapter on this module."""
        if _excluded(self.exclude_modules, module) or self.target_modules is None:
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == "all-linear":
                return not module.endswith(_HEADS)
            return _fullmatch(self.target_modules, module)
        if module in self.target_modules:
            return True
        return any(module.endswith(f".{name}") for name in self.target_modules) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        """PEFT's layers_to_transform: the first numbered segment of the name decides."""
        if not self.layer_indexes:
            return True
        patterns = [rf"(?:^|.*?\.)(?:{p})\.(\d+)\." for p in self.layers_patterns] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((hit for pattern in patterns if (hit := _match(_compiled(pattern), module))), None)
        return found is not None and int(found.group(1)) in self.layer_indexes


def read_lora_settings(folder: Path) -> LoraSettings:
    """The settings of a PEFT folder, or InvalidAdapter naming what cannot be honoured."""
    config = _read_json(folder / CONFIG_FILE)
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise _refuse(f"its peft_type is {str(peft_type)[:50]!r}; only LORA is served. Train a LoRA adapter instead")
    _refuse_pickle(folder)
    for key, reason in _UNSUPPORTED.items():
        if config.get(key):
            raise _refuse(reason)
    if config.get("bias", "none") != "none":
        raise _refuse(f"bias={str(config['bias'])[:20]!r} changes the base model's biases. Train with bias='none'")
    if config.get("init_lora_weights") not in _PLAIN_INITS:
        raise _refuse(
            f"init_lora_weights={str(config['init_lora_weights'])[:30]!r} changes the base model's weights. "
            "Save it with PEFT's path_initial_model_for_weight_conversion, or train with init_lora_weights=True"
        )
    unknown = [key for key, value in config.items() if key.startswith("use_") and key != "use_rslora" and value]
    if unknown:
        raise _refuse(f"{unknown[0][:50]!r} is a feature that is not supported. Train it as plain LoRA")
    return _settings(config)


def _settings(config: Mapping[str, Any]) -> LoraSettings:
    """Typed settings; wrong types are the sender's error, not ours."""
    try:
        indexes = config.get("layers_to_transform")
        patterns = config.get("layers_pattern") or ()
        return LoraSettings(
            rank=_positive_int(config.get("r"), "r"),
            alpha=_finite(config.get("lora_alpha", 8), "lora_alpha"),
            use_rslora=bool(config.get("use_rslora")),
            rank_pattern=_patterns(config, "rank_pattern", lambda rank: _positive_int(rank, "rank_pattern")),
            alpha_pattern=_patterns(config, "alpha_pattern", lambda alpha: _finite(alpha, "alpha_pattern")),
            target_modules=_names(config.get("target_modules")),
            exclude_modules=_names(config.get("exclude_modules")) or frozenset(),
            layer_indexes=frozenset([indexes] if isinstance(indexes, int) else map(int, indexes or ())),
            layers_patterns=(patterns,) if isinstance(patterns, str) else tuple(map(str, patterns)),
            made_for=str(config.get("base_model_name_or_path") or "unnamed")[:200],
        )
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _refuse(f"{CONFIG_FILE} has a field of the wrong type ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    """A bounded JSON object from disk."""
    if not path.is_file():
        raise _refuse(f"{CONFIG_FILE} is missing. Send the folder that PEFT saves")
    with path.open("rb") as file:
        text = file.read(_MAX_CONFIG_BYTES + 1)
    if len(text) > _MAX_CONFIG_BYTES:
        raise _refuse(f"{CONFIG_FILE} is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refuse(f"{CONFIG_FILE} is not JSON") from error
    if not isinstance(config, dict):
        raise _refuse(f"{CONFIG_FILE} is not a JSON object")
    return config


def _refuse_pickle(folder: Path) -> None:
    """Before anything else is said about the weights: a pickle is refused for what it is."""
    with open_weights(folder):
        pass


def _positive_int(value: object, name: str) -> int:
    """A rank; JSON's true is not one."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} must be a whole number, not {str(value)[:30]!r}")
    if value == 0:
        raise ValueError(f"{name} is 0, which would change nothing")
    return value


def _finite(value: object, name: str) -> float:
    """An alpha."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {str(value)[:30]!r}")
    return float(value)


def _patterns(config: Mapping[str, Any], key: str, value_of: Callable[[Any], float]) -> tuple[ModulePattern, ...]:
    """A mapping of patterns in the config, which may be null; compiled once, because every module asks."""
    entries = dict(config.get(key) or {})
    if len(entries) > _MAX_PATTERNS:
        raise ValueError(f"{key} has more than {_MAX_PATTERNS} patterns")
    return tuple(ModulePattern(_compiled(rf"(.*\.)?({name})$"), value_of(value)) for name, value in entries.items())


def _names(value: object) -> str | frozenset[str] | None:
    """PEFT writes a list of names or one pattern."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return frozenset(value)
    raise ValueError("target_modules and exclude_modules must be names")


def _excluded(exclude: str | frozenset[str], module: str) -> bool:
    """PEFT's exclude_modules."""
    if isinstance(exclude, str):
        return bool(exclude) and _fullmatch(exclude, module)
    return module in exclude or any(module.endswith(f".{name}") for name in exclude)


def _first_value(patterns: tuple[ModulePattern, ...], module: str, default: float) -> float:
    """The value of the first pattern that matches the end of the name."""
    return next((entry.value for entry in patterns if _match(entry.pattern, module)), default)


def _fullmatch(pattern: str, name: str) -> bool:
    return _match(_compiled(rf"(?:{pattern})\Z"), name) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    """A stranger's pattern, bounded in length."""
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise _refuse(f"a pattern in {CONFIG_FILE} is longer than {_MAX_PATTERN_LENGTH} characters")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise _refuse(f"the pattern {pattern[:60]!r} in {CONFIG_FILE} is invalid") from error


def _match(pattern: "regex.Pattern[str]", name: str) -> "regex.Match[str] | None":
    """`match`, bounded in time."""
    try:
        return pattern.match(name, timeout=_MATCH_TIMEOUT_S)
    except (TimeoutError, RecursionError) as error:
        raise _refuse(f"the pattern {pattern.pattern[:60]!r} in {CONFIG_FILE} takes too long") from error


def _refuse(reason: str) -> InvalidAdapter:
    return InvalidAdapter(f"This adapter cannot be used: {reason}.", param=CONFIG_FILE)
