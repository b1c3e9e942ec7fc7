"""Adapters on disk: what is served means what PEFT means, everything else is refused in its own words."""

import json
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, OPTConfig

from services.shared.errors import InvalidAdapter
from services.shared.modeling.adapter_config import read_lora_settings
from services.shared.modeling.adapter_files import check_adapter_folder, read_adapter
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.modeling.wiring import BaseShapes
from tests.unit.shared.modeling.tiny_models import save_random_adapter, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q_PROJ_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_PROJ_B = Q_PROJ_A.replace("lora_A", "lora_B")
Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]


@pytest.fixture(scope="module", name="shapes")
def llama_shapes() -> BaseShapes:
    return BaseShapes.of(tiny_model())


@pytest.fixture(name="folder")
def adapter_folder(tmp_path: Path) -> Path:
    return save_random_adapter(tmp_path / "adapter", seed=1, rank=4)


def rewrite(folder: Path, edit: Edit) -> None:
    """Change config and tensors of a folder."""
    config = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / WEIGHTS)
    edit(config, tensors)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def refusal(folder: Path, shapes: BaseShapes, **limits: Any) -> str:
    with pytest.raises(InvalidAdapter) as refused:
        read_adapter(folder, shapes, **limits)
    return refused.value.message


class TestWhatIsServed:
    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"use_rslora": True},
            {"rank_pattern": {"layers.1.self_attn.q_proj": 7, "down_proj": 2}},
            {"alpha_pattern": {r"layers\.[02]\..*": 3, "up_proj": 50}},
            {"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"v_proj": 5}},
            {"layers_to_transform": [0, 2]},
            {"layers_to_transform": [1], "layers_pattern": "layers"},
            {"exclude_modules": ["k_proj"]},
            {"fan_in_fan_out": True},
            {"targets": r".*\.layers\.[02]\..*\.(q|down)_proj"},
            {"targets": "all-linear"},
            {"rank_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 7, r"layers\.\d+\.mlp\.(up|gate)_proj": 6}},
            {"alpha_pattern": {"q_proj": 1, "layers.1.self_attn.q_proj": 100}, "use_rslora": True, "rank": 5},
            {"layers_to_transform": 1, "layers_pattern": ["h", "layers"], "exclude_modules": r".*\.(k|v)_proj"},
        ],
        ids=str,
    )
    def test_means_what_peft_means(self, config: dict[str, Any], tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder = save_random_adapter(tmp_path / "adapter", seed=1, **config)
            peft_model = PeftModel.from_pretrained(tiny_model(), folder)
        token_ids_BT = torch.arange(3, 17).view(2, 7)
        model = tiny_model()
        mixture = LoraMixture.attach(model, num_slots=1)

        mixture.load(0, read_adapter(folder, model))
        with torch.no_grad(), mixture.gates(torch.ones(14, 1), (0,)):
            mixed_BTV = model(token_ids_BT).logits
            assert (mixed_BTV - peft_model(token_ids_BT).logits).abs().max() <= 1e-5

    def test_all_linear_leaves_the_head_out_as_peft_does(self, folder: Path, shapes: BaseShapes) -> None:
        rewrite(folder, configure(target_modules="all-linear"))
        assert read_adapter(folder, shapes).report.rank == 4
        rewrite(folder, rename("model.layers.0.self_attn.q_proj", "lm_head"))
        rewrite(
            folder,
            lambda _c, tensors: tensors.update(
                {Q_PROJ_B.replace("model.layers.0.self_attn.q_proj", "lm_head"): torch.ones(96, 4)}
            ),
        )
        assert "does not target" in refusal(folder, shapes)

    def test_lies_as_a_slot_holds_it(self, tmp_path: Path, shapes: BaseShapes) -> None:
        adapter = read_adapter(save_random_adapter(tmp_path, seed=1, rank=6, rank_pattern={"q_proj": 3}), shapes)
        model = tiny_model()

        assert LoraMixture.attach(model, num_slots=1).prepare(adapter) is adapter
        weights = adapter.layers["model.layers.0.self_attn.q_proj"], adapter.layers["model.layers.0.self_attn.v_proj"]
        assert [layer.rank for layer in weights] == [4, 8]
        assert all(layer.up_OR.T.is_contiguous() for layer in weights)
        assert not weights[0].down_RI[3:].any()
        assert len({layer.down_RI.untyped_storage().data_ptr() for layer in adapter.layers.values()}) == 1
        assert adapter.report.num_bytes < adapter.num_bytes

    def test_reports_what_it_holds(self, tmp_path: Path, shapes: BaseShapes) -> None:
        folder = save_random_adapter(tmp_path, seed=1, rank=6, targets=["q_proj", "v_proj"], layers_to_transform=[1, 2])
        report = check_adapter_folder(folder, shapes, base_fingerprint="f" * 64)

        assert (report.rank, report.lowest_layer, report.target_modules) == (6, 1, ("q_proj", "v_proj"))
        assert report.num_parameters == 2 * 6 * ((32 + 32) + (32 + 16))
        assert report.num_bytes == 4 * report.num_parameters
        assert report.base_fingerprint == "f" * 64

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_takes_half_precision_files(self, folder: Path, shapes: BaseShapes, dtype: torch.dtype) -> None:
        rewrite(folder, lambda _config, tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
        assert next(iter(read_adapter(folder, shapes).layers.values())).down_RI.dtype is torch.float32


def drop(name: str) -> Edit:
    return lambda _config, tensors: tensors.__delitem__(name)


def replace(name: str, change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(_config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name])

    return edit


def rename(old: str, new: str) -> Edit:
    def edit(_config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit


def configure(**changes: Any) -> Edit:
    return lambda config, _tensors: config.update(changes)


def poison(value: float) -> Edit:
    def change(tensor: Tensor) -> Tensor:
        tensor[0, 0] = value
        return tensor

    return replace(Q_PROJ_B, change)


REFUSED: dict[str, tuple[Edit, str]] = {
    "prompt tuning": (configure(peft_type="PROMPT_TUNING"), "PROMPT_TUNING"),
    "no type": (configure(peft_type=None), "peft_type"),
    "dora": (configure(use_dora=True), "DoRA"),
    "modules to save": (configure(modules_to_save=["lm_head"]), "modules_to_save"),
    "bias": (configure(bias="lora_only"), "bias"),
    "lora bias": (configure(lora_bias=True), "lora_bias"),
    "auto map": (configure(auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "pissa": (configure(init_lora_weights="pissa"), "pissa"),
    "unknown feature": (configure(use_telepathy=True), "use_telepathy"),
    "rank in config": (configure(r=5), "rank 5"),
    "rank zero in config": (configure(r=0), "r is 0"),
    "rank pattern zero": (configure(rank_pattern={"q_proj": 0}), "rank_pattern is 0"),
    "alpha is no number": (configure(lora_alpha=float("nan")), "lora_alpha"),
    "alpha is zero": (configure(lora_alpha=0), "change nothing"),
    "wrong types": (configure(target_modules=3), "wrong type"),
    "invalid pattern": (configure(target_modules="(("), "invalid"),
    "many patterns": (configure(rank_pattern={str(i): 4 for i in range(5000)}), "more than 1024"),
    "slow pattern": (configure(target_modules=r"(x+x+)+y|(.|\w|\W)+(.|\w|\W)+(.|\w|\W)+(.|\w|\W)+!"), "too long"),
    "untargeted weights": (configure(target_modules=["k_proj"]), "does not target"),
    "rank zero": (
        lambda c, t: t.update({Q_PROJ_A: torch.zeros(0, 32), Q_PROJ_B: torch.zeros(32, 0)}),
        "rank 0",
    ),
    "a and b of different ranks": (replace(Q_PROJ_B, lambda b: b[:, :3]), "do not fit together"),
    "other widths": (replace(Q_PROJ_A, lambda a: torch.cat([a, a], 1)), "32 in and 32 out"),
    "vector": (replace(Q_PROJ_A, lambda a: a.flatten()), "matrices"),
    "nan": (poison(float("nan")), "NaN"),
    "infinity": (poison(float("inf")), "NaN or infinity"),
    "integers": (replace(Q_PROJ_A, lambda a: a.to(torch.int8)), "I8"),
    "half a pair": (drop(Q_PROJ_B), "belong together"),
    "no tensors": (lambda _c, t: t.clear(), "no LoRA tensors"),
    "all modules unknown": (rename("self_attn", "attention"), "do not exist"),
    "everything unknown": (rename(".layers.", ".blocks."), "none of its 21 modules exists"),
    "not linear": (rename("layers.0.self_attn.q_proj", "layers.0.self_attn"), "not linear"),
    "whole modules": (lambda _c, t: t.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}), "base weights"),
    "embedding": (
        lambda _c, t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 2)}),
        "embedding",
    ),
    "magnitude": (
        lambda _c, t: t.update({Q_PROJ_A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(2)}),
        "DoRA",
    ),
    "bias tensor": (lambda _c, t: t.update({Q_PROJ_B.replace("weight", "bias"): torch.ones(32)}), "bias"),
    "other tensors": (lambda _c, t: t.update({"transformer.wte": torch.ones(2, 2)}), "not a LoRA weight"),
    "no effect": (lambda _c, t: t.update({n: x * 0 for n, x in t.items() if "lora_B" in n}), "change nothing"),
}


class TestWhatIsRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_in_its_own_words(self, name: str, folder: Path, shapes: BaseShapes) -> None:
        edit, words = REFUSED[name]
        rewrite(folder, edit)
        assert words in refusal(folder, shapes)

    def test_a_rank_above_the_limit(self, folder: Path, shapes: BaseShapes) -> None:
        assert "limit is 3" in refusal(folder, shapes, max_rank=3)

    @pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
    def test_a_pickle(self, name: str, folder: Path, shapes: BaseShapes) -> None:
        (folder / WEIGHTS).rename(folder / name)
        assert "pickle" in refusal(folder, shapes)

    @pytest.mark.parametrize("start", [b"PK\x03\x04rest of a zip", b"\x80\x04pickled"])
    def test_a_pickle_under_another_name(self, start: bytes, folder: Path, shapes: BaseShapes) -> None:
        (folder / WEIGHTS).write_bytes(start)
        assert "pickle under another name" in refusal(folder, shapes)

    def test_an_empty_or_missing_file_and_config(self, folder: Path, shapes: BaseShapes) -> None:
        (folder / WEIGHTS).write_bytes(b"")
        assert "truncated" in refusal(folder, shapes)
        (folder / WEIGHTS).unlink()
        assert "missing" in refusal(folder, shapes)
        for text in ("{", "[]", "[" * 100_000, " " * 2_000_000):
            (folder / CONFIG).write_text(text)
            assert CONFIG in refusal(folder, shapes)
        (folder / CONFIG).unlink()
        assert "missing" in refusal(folder, shapes)

    def test_hostile_headers_at_once(self, folder: Path, shapes: BaseShapes) -> None:
        def entry(**changes: Any) -> dict[str, Any]:
            return {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512], **changes}

        two = {"a": entry(), "b": entry()}
        headers: dict[str, bytes] = {
            "overlapping": json.dumps(two).encode(),
            "scattered": json.dumps({"a": entry(data_offsets=[512, 1024])}).encode(),
            "wrongly": json.dumps({"a": entry(shape=[4, -32])}).encode(),
            "(dtype": json.dumps({"a": entry(dtype="PICKLE")}).encode(),
            "data_offsets)": json.dumps({"a": entry(data_offsets=[0, 2**63])}).encode(),
            "512 bytes for": json.dumps({"a": entry(shape=[2**20, 2**20])}).encode(),
            "not JSON": b"{" * 1000,
            "at most 20000": json.dumps({str(i): 0 for i in range(100_000)}).encode(),
        }
        for words, header in headers.items():
            (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 512)
            started_at = time.perf_counter()
            assert words in refusal(folder, shapes)
            assert time.perf_counter() - started_at < 1
        for length in (2**63, 2**64 - 1, 10**6):
            (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + b"{}" * 300)
            assert "truncated" in refusal(folder, shapes)

    def test_a_truncated_or_padded_file(self, folder: Path, shapes: BaseShapes) -> None:
        content = (folder / WEIGHTS).read_bytes()
        for changed in (content[:-4], content + b"\0\0\0\0"):
            (folder / WEIGHTS).write_bytes(changed)
            assert "truncated or padded" in refusal(folder, shapes)

    def test_an_adapter_for_a_wider_model_of_the_same_family(self, folder: Path) -> None:
        config = LlamaConfig(hidden_size=64, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        with torch.device("meta"):
            shapes = BaseShapes.of(AutoModelForCausalLM.from_config(config))
        message = refusal(folder, shapes)
        assert "another base model" in message
        assert "48 in and 64 out features, the adapter expects 48 in and 32 out" in message


class TestTargets:
    @pytest.mark.parametrize(
        "fields",
        [
            {"target_modules": ["q_proj", "mlp.up_proj"]},
            {"target_modules": r".*\.layers\.[01]\..*(q|k)_proj"},
            {"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
            {"target_modules": ["q_proj"], "exclude_modules": r".*\.2\..*"},
            {"target_modules": ["q_proj"], "layers_to_transform": 1},
            {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0, 2], "layers_pattern": ["h", "layers"]},
        ],
        ids=str,
    )
    def test_are_those_of_peft(self, fields: dict[str, Any], tmp_path: Path, shapes: BaseShapes) -> None:
        config = LoraConfig(r=4, **fields)
        config.save_pretrained(tmp_path)
        (tmp_path / WEIGHTS).write_bytes(b"unread")
        settings = read_lora_settings(tmp_path)
        for module in shapes.linears:
            assert settings.targets(module) == bool(check_target_module_exists(config, module)), module


class TestRealFolders:
    @pytest.fixture(name="real")
    def real_folders(self, shared_material: Path) -> dict[str, Path]:
        return {folder.name.split("__")[0]: folder for folder in (shared_material / "adapters").iterdir()}

    @pytest.mark.parametrize(
        ("owner", "words"),
        [
            ("guilhermmeabreu", "made for another base model (facebook/opt-125m)"),
            ("BK7195", "made for another base model (cyberagent/open-calm-1b)"),
            ("wujindou", "pickle"),
            ("LuisWangSS", "Git-LFS pointer"),
            ("isabee426", "PROMPT_TUNING"),
        ],
    )
    def test_are_refused_for_stories_each_with_its_reason(
        self, owner: str, words: str, real: dict[str, Path], shared_material: Path
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(shared_material / "models" / "stories260K-hf")
        assert words in refusal(real[owner], BaseShapes.of(model))

    def test_fit_bases_of_their_own_shapes(self, real: dict[str, Path]) -> None:
        opt = OPTConfig()  # the defaults are opt-125m
        neox = GPTNeoXConfig(
            hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=8192, vocab_size=52_096
        )
        with torch.device("meta"):
            bases = {
                "guilhermmeabreu": BaseShapes.of(AutoModelForCausalLM.from_config(opt)),
                "BK7195": BaseShapes.of(AutoModelForCausalLM.from_config(neox)),
            }
        reports = {owner: check_adapter_folder(real[owner], shapes) for owner, shapes in bases.items()}
        assert (reports["guilhermmeabreu"].rank, reports["guilhermmeabreu"].target_modules) == (
            16,
            ("q_proj", "v_proj"),
        )
        assert (reports["BK7195"].rank, reports["BK7195"].target_modules) == (1, ("query_key_value",))
        assert reports["BK7195"].num_parameters == 24 * (2048 + 3 * 2048)
