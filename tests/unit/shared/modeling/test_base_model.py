"""Loading the base model: frozen, named by its content, refusals that name the setting."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.shared.config import ExpertServiceSettings, Settings
from services.shared.errors import InvalidRequest
from services.shared.modeling.base_model import base_fingerprint, choose_device, empty_model, load_base_model
from services.shared.modeling.wiring import BaseShapes
from tests.unit.shared.modeling.tiny_models import FAMILIES, tiny_model


@pytest.fixture(name="folder")
def stories_copy(shared_material: Path, tmp_path: Path) -> Path:
    return shutil.copytree(
        shared_material / "models" / "stories260K-hf", tmp_path / "base", copy_function=shutil.copyfile
    )


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(base_model=str(folder), device="cpu", **changes)


class TestLoadBaseModel:
    def test_loads_frozen(self, folder: Path) -> None:
        base = load_base_model(settings(folder))
        assert (base.max_context, base.num_parameters, base.dtype) == (512, 260_032, torch.float32)
        assert base.fingerprint == base_fingerprint(str(folder))
        assert not base.model.training
        assert not any(parameter.requires_grad for parameter in base.model.parameters())

    def test_takes_other_dtypes(self, folder: Path) -> None:
        assert load_base_model(settings(folder, dtype="bfloat16")).model.dtype is torch.bfloat16

    @pytest.mark.parametrize(
        ("changes", "param"),
        [
            ({"quantization": "8bit"}, "quantization"),
            ({"expert_service": ExpertServiceSettings(max_context=513)}, "expert_service.max_context"),
        ],
    )
    def test_refuses_what_cannot_work_by_its_setting(self, changes: dict[str, Any], param: str, folder: Path) -> None:
        with pytest.raises(InvalidRequest) as refused:
            load_base_model(settings(folder, **changes))
        assert refused.value.param == param

    def test_refuses_pickled_weights_and_missing_folders(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(InvalidRequest, match="safetensors"):
            load_base_model(settings(folder))
        with pytest.raises(InvalidRequest, match="does not exist"):
            load_base_model(settings(folder / "nowhere"))

    def test_refuses_a_device_that_is_not_there(self) -> None:
        with pytest.raises(InvalidRequest, match="device"):
            choose_device("abacus")
        if not torch.cuda.is_available():
            with pytest.raises(InvalidRequest, match="not there"):
                choose_device("cuda:3")


class TestFingerprint:
    def test_follows_weights_and_configuration_only(self, folder: Path) -> None:
        before = base_fingerprint(str(folder))
        (folder / "README.md").write_text("hello")
        assert base_fingerprint(str(folder)) == before

        weights = load_file(folder / "model.safetensors")
        name = next(iter(weights))
        weights[name] = weights[name] + 1e-3
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert base_fingerprint(str(folder)) != before


class TestBaseShapes:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_find_the_decoder_stack_and_its_linear_layers(self, family: str) -> None:
        shapes = BaseShapes.of(tiny_model(family))
        assert shapes.num_layers == 3
        layers = {shapes.layer_of(name) for name in shapes.linears if name.startswith(shapes.layer_stack)}
        assert layers == {0, 1, 2}

    def test_need_no_memory_for_weights(self, folder: Path) -> None:
        model = empty_model(str(folder))
        assert next(model.parameters()).device.type == "meta"
        shapes = BaseShapes.of(model)
        assert shapes.layer_of("lm_head") == shapes.num_layers == 5
