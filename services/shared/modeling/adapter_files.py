"""Adapters on disk: PEFT folders read whole and verified before any of it is believed.

Nothing of a folder is executed. Headers are read bounded and by hand, so that a hostile file is refused before
its size can hurt; weights are read once, from the handle that was checked. Every refusal is an InvalidAdapter
that says what is wrong and what would be accepted. Format: PEFT 0.21, `save_pretrained` of a LoraConfig.

Shape letters: I features in, O features out, R rank, P rank padded to its bucket.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor, nn

from services.shared.errors import InvalidAdapter
from services.shared.modeling.adapter_config import CONFIG_FILE, LoraSettings, read_lora_settings
from services.shared.modeling.block_pool import BlockPool, Bytes
from services.shared.modeling.rank_buckets import bucket_of
from services.shared.modeling.safetensors_header import WEIGHTS_FILE, TensorEntry, open_weights, read_header
from services.shared.modeling.wiring import BaseShapes, LinearShape
from services.shared.schemas.sequences import AdapterReport

DEFAULT_MAX_RANK = 256
_PREFIX = "base_model.model."
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_NAMES_SHOWN = 6


@dataclass(frozen=True)
class LayerWeights:
    """One adapter's part in one linear layer. `up_OR` has the scaling (alpha / rank, or / sqrt(rank)) folded in."""

    down_RI: Tensor
    up_OR: Tensor

    @property
    def rank(self) -> int:
        """Width of the narrow space, padding included."""
        return self.down_RI.shape[0]


@dataclass(frozen=True)
class Adapter:
    """A verified adapter in memory: weights per module name, in the dtype of the base model.

    One that was read from disk already lies as a slot holds it: ranks padded to their buckets, the transpose of
    `up_OR` contiguous, all layers in one block of memory.
    """

    layers: Mapping[str, LayerWeights]
    report: AdapterReport

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of its weights in memory."""
        return sum(w.down_RI.nbytes + w.up_OR.nbytes for w in self.layers.values())


@dataclass(frozen=True)
class _Pair:
    """The two tensors of one module as the header announces them."""

    down: TensorEntry
    up: TensorEntry
    rank: int
    scaling: float

    @property
    def num_parameters(self) -> int:
        """Numbers in both, without padding."""
        return math.prod(self.down.shape) + math.prod(self.up.shape)

    @property
    def num_padded(self) -> int:
        """Numbers in both at the rank's bucket."""
        return bucket_of(self.rank) * (self.down.shape[1] + self.up.shape[0])


def read_adapter(
    folder: Path,
    base: nn.Module | BaseShapes,
    *,
    max_rank: int = DEFAULT_MAX_RANK,
    dtype: torch.dtype = torch.float32,
    base_fingerprint: str = "",
    blocks: BlockPool | None = None,
) -> Adapter:
    """The adapter of a PEFT folder, verified against the base model and converted to `dtype`.

    Reads the weights file once, into memory from `blocks` if there are any. Raises InvalidAdapter with the reason when
    it cannot be served exactly as PEFT would.
    """
    shapes = base if isinstance(base, BaseShapes) else BaseShapes.of(base)
    settings = read_lora_settings(folder)
    with open_weights(folder) as file:
        header = read_header(file)
        pairs = _pair_up(header, settings, shapes, max_rank=max_rank)
        layers = _read_weights(file, pairs, dtype, blocks or BlockPool())
    _refuse_no_op(layers)
    num_parameters = sum(pair.num_parameters for pair in pairs.values())
    report = AdapterReport(
        rank=max(pair.rank for pair in pairs.values()),
        num_parameters=num_parameters,
        num_bytes=num_parameters * dtype.itemsize,
        target_modules=tuple(sorted({name.rsplit(".", 1)[-1] for name in layers})),
        lowest_layer=min(shapes.layer_of(name) for name in layers),
        base_fingerprint=base_fingerprint,
    )
    return Adapter(layers=layers, report=report)


def check_adapter_folder(
    folder: Path,
    base: nn.Module | BaseShapes,
    *,
    max_rank: int = DEFAULT_MAX_RANK,
    base_fingerprint: str = "",
) -> AdapterReport:
    """What the adapter holds, after every check of `read_adapter`; raises InvalidAdapter as it does."""
    return read_adapter(folder, base, max_rank=max_rank, base_fingerprint=base_fingerprint).report


def _pair_up(
    header: Mapping[str, TensorEntry], settings: LoraSettings, shapes: BaseShapes, *, max_rank: int
) -> dict[str, _Pair]:
    """Sort the file's tensors into one down and one up per module, and check each against config and base."""
    sides: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in header.items():
        module, side = _split_tensor_name(name)
        if side in sides.setdefault(module, {}):
            raise _refuse(f"it holds two {side} tensors for module {module!r}. Save it again with PEFT.")
        sides[module][side] = entry
    if not sides:
        raise _refuse("it holds no LoRA tensors at all. Save it again with PEFT's save_pretrained.")
    _refuse_unknown_modules(sides, settings, shapes)
    return {
        module: _checked_pair(module, tensors, settings, shapes.linears[module], max_rank=max_rank)
        for module, tensors in sides.items()
    }


def _split_tensor_name(name: str) -> tuple[str, str]:
    """`base_model.model.X.lora_A.weight` (or `.lora_A.default.weight`) -> (X, "lora_A")."""
    module, dot, rest = name.removeprefix(_PREFIX).rpartition(".lora_")
    side, _, tail = rest.partition(".")
    if "lora_magnitude_vector" in name:
        raise _refuse("it is a DoRA adapter (lora_magnitude_vector). Train it as plain LoRA (use_dora=False).")
    if "lora_embedding" in name:
        raise _refuse(f"{name!r} adapts an embedding. Only linear layers are served: train without it.")
    if tail.endswith("bias"):
        raise _refuse(f"{name!r} is a bias. Train with bias='none' and lora_bias=False.")
    if name.endswith((".base_layer.weight", "lm_head.weight", "embed_tokens.weight", "wte.weight")):
        raise _refuse(
            f"it carries a copy of base weights ({name[:100]!r}). "
            "Save it with save_pretrained(save_embedding_layers=False)."
        )
    if not dot or side not in ("A", "B") or tail.split(".")[-1] != "weight" or tail.count(".") > 1:
        raise _refuse(
            f"tensor {name[:200]!r} is not a LoRA weight. Expected names like "
            "'base_model.model.<module>.lora_A.weight' and '.lora_B.weight'; modules_to_save is not supported."
        )
    return module, f"lora_{side}"


def _refuse_unknown_modules(
    sides: Mapping[str, Mapping[str, TensorEntry]], settings: LoraSettings, shapes: BaseShapes
) -> None:
    """Every tensor must find a linear layer here, and be one that the adapter's own config targets."""
    unknown = [module for module in sides if module not in shapes.linears]
    if len(unknown) == len(sides):
        raise _refuse(
            f"it was made for another base model ({settings.made_for}): none of its {len(sides)} modules exists in "
            f"this one. It has {_shown(unknown)}; this base model offers {_shown(list(shapes.linears))}. "
            "Use an adapter trained on this base model."
        )
    if unknown:
        wrong_kind = [module for module in unknown if module in shapes.other_modules]
        why = "are not linear layers" if wrong_kind else "do not exist in this base model"
        raise _refuse(
            f"{len(unknown)} of its {len(sides)} modules {why}: {_shown(wrong_kind or unknown)}. "
            "Unmatched weights are never dropped: train the adapter on this base model's linear layers."
        )
    stray = [module for module in sides if not settings.targets(module)]
    if stray:
        raise _refuse(
            f"it has weights for {_shown(stray)}, which its own {CONFIG_FILE} does not target, so PEFT would ignore "
            "them. Correct target_modules, exclude_modules or layers_to_transform."
        )


def _checked_pair(
    module: str, tensors: Mapping[str, TensorEntry], settings: LoraSettings, shape: LinearShape, *, max_rank: int
) -> _Pair:
    """Shapes, ranks and dtypes of one module against the base model and the adapter's own config."""
    down, up = _fitting_matrices(module, tensors)
    rank = down.shape[0]
    if rank > max_rank:
        raise _refuse(f"module {module!r} has rank {rank}; the limit is {max_rank} (expert_service.max_rank).")
    if (down.shape[1], up.shape[0]) != (shape.num_in, shape.num_out):
        raise _refuse(
            f"it was made for another base model ({settings.made_for}): {module!r} here has {shape.num_in} in and "
            f"{shape.num_out} out features, the adapter expects {down.shape[1]} in and {up.shape[0]} out. "
            "Use an adapter trained on this base model."
        )
    if rank != settings.rank_of(module):
        raise _refuse(
            f"{CONFIG_FILE} says rank {settings.rank_of(module)} for {module!r}, but its weights have rank {rank}; "
            "correct r or rank_pattern."
        )
    return _Pair(down=down, up=up, rank=rank, scaling=settings.scaling_of(module))


def _fitting_matrices(module: str, tensors: Mapping[str, TensorEntry]) -> tuple[TensorEntry, TensorEntry]:
    """A module's two tensors, if they are float matrices of one rank above zero."""
    if set(tensors) != {"lora_A", "lora_B"}:
        raise _refuse(f"module {module!r} has only {', '.join(tensors)}; lora_A and lora_B belong together.")
    down, up = tensors["lora_A"], tensors["lora_B"]
    for entry in (down, up):
        if entry.dtype not in _FLOATS:
            raise _refuse(f"module {module!r} is stored as {entry.dtype}; weights must be {', '.join(_FLOATS)}.")
        if len(entry.shape) != 2:
            raise _refuse(f"module {module!r} has a tensor of shape {list(entry.shape)}; LoRA weights are matrices.")
    if down.shape[0] == 0 or up.shape[1] == 0:
        raise _refuse(f"module {module!r} has rank 0: it would change nothing.")
    if down.shape[0] != up.shape[1]:
        raise _refuse(
            f"lora_A and lora_B of {module!r} do not fit together: A is {list(down.shape)}, B is {list(up.shape)}; "
            "A must be [rank, in], B [out, rank]."
        )
    return down, up


def _read_weights(
    file: BufferedReader, pairs: Mapping[str, _Pair], dtype: torch.dtype, blocks: BlockPool
) -> dict[str, LayerWeights]:
    """All weights in one read, laid out in one block; the scaling goes into `up_OR` in float32 before conversion."""
    data = _read_data(file, max(max(pair.down.end, pair.up.end) for pair in pairs.values()), blocks)
    sizes = [pair.num_padded for pair in pairs.values()]
    block = blocks.take(sum(sizes), dtype)
    layers = {
        module: _lay_out(data, pair, part)
        for (module, pair), part in zip(pairs.items(), block.split(sizes), strict=True)
    }
    # One sum instead of a look at every number: what is not finite stays so in a sum.
    if not math.isfinite(block.sum(dtype=torch.float32)):
        for module, pair in pairs.items():
            _refuse_not_finite(module, data, pair, layers[module])
    return layers


def _read_data(file: BufferedReader, num_bytes: int, blocks: BlockPool) -> Bytes:
    """What follows the header."""
    start = file.tell()
    data: Bytes = blocks.take(num_bytes, torch.uint8).numpy()
    if file.readinto(data.data) != num_bytes or file.read(1):
        raise _refuse(f"{WEIGHTS_FILE} changed while it was read from offset {start}. Try again.")
    return data


def _lay_out(data: Bytes, pair: _Pair, block: Tensor) -> LayerWeights:
    """One module's weights in its part of the block, at the rank's bucket."""
    bucket, (rank, num_in), num_out = bucket_of(pair.rank), pair.down.shape, pair.up.shape[0]
    flat_down, flat_up = block.split([bucket * num_in, bucket * num_out])
    weights = LayerWeights(down_RI=flat_down.view(bucket, num_in), up_OR=flat_up.view(bucket, num_out).T)
    down_RI, up_RO = weights.down_RI, flat_up.view(bucket, num_out)
    if bucket > rank:
        down_RI, padding_PI = down_RI.split([rank, bucket - rank])
        up_RO, padding_PO = up_RO.split([rank, bucket - rank])
        padding_PI.zero_()
        padding_PO.zero_()
    down_RI.copy_(_tensor(data, pair.down))
    up_OR = _tensor(data, pair.up)
    if block.dtype is torch.float32 and up_OR.dtype is torch.float32:
        # A product with a multiple of the identity: exact, and faster than transposing and scaling.
        torch.mm(_scaled_identity(rank, pair.scaling), up_OR.T, out=up_RO)
    else:
        up_RO.copy_(up_OR.float().T * pair.scaling)
    return weights


@lru_cache(maxsize=64)
def _scaled_identity(size: int, scaling: float) -> Tensor:
    return torch.eye(size) * scaling


def _refuse_not_finite(module: str, data: Bytes, pair: _Pair, weights: LayerWeights) -> None:
    """Say whether a module's numbers were not finite in the file, or are no longer in our dtype."""
    if not all(bool(torch.isfinite(_tensor(data, entry)).all()) for entry in (pair.down, pair.up)):
        raise _refuse(f"the weights of {module!r} contain NaN or infinity. Train it with a lower learning rate.")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (weights.down_RI, weights.up_OR)):
        dtype = weights.down_RI.dtype
        raise _refuse(f"the weights of {module!r} overflow in {dtype}. Serve the base in float32 or bfloat16.")


def _tensor(data: Bytes, entry: TensorEntry) -> Tensor:
    """A view of the file's bytes as a matrix."""
    flat = torch.frombuffer(data, dtype=_FLOATS[entry.dtype], count=math.prod(entry.shape), offset=entry.begin)
    return flat.view(entry.shape)


def _refuse_no_op(layers: Mapping[str, LayerWeights]) -> None:
    """An adapter whose product is zero everywhere would look like an expert and be the base model."""
    if not any(bool(w.up_OR.any()) and bool(w.down_RI.any()) for w in layers.values()):
        raise _refuse("it would change nothing: A or B is zero in every module. Was it saved before training?")


def _shown(names: list[str]) -> str:
    """A few names for a message, and how many more there are."""
    shown = ", ".join(repr(name[:100]) for name in names[:_NAMES_SHOWN])
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")


def _refuse(reason: str) -> InvalidAdapter:
    """The one way to say no."""
    return InvalidAdapter(f"This adapter cannot be used: {reason}", param=WEIGHTS_FILE)
