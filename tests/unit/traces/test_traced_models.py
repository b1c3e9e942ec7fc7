"""Native models are found below the operator's folder, and nowhere else."""

import json
from pathlib import Path

import pytest

from services.shared.errors import InvalidRequest, NotFound
from services.traces.traced_models import model_folder


def model(folder: Path, *, shards: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if shards is None:
        (folder / "model.safetensors").write_bytes(b"")
    else:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        for name in shards.values():
            (folder / name).resolve().write_bytes(b"")
    return folder


class TestFolder:
    def test_is_found_by_its_path_below_the_root(self, tmp_path: Path) -> None:
        folder = model(tmp_path / "models" / "mistral" / "mixtral")

        assert model_folder(tmp_path / "models", "mistral/mixtral") == folder.resolve()
        assert model_folder(tmp_path / "models", str(folder)) == folder.resolve()

    def test_may_be_a_link_to_another_place_below_it_as_in_a_hubs_cache(self, tmp_path: Path) -> None:
        folder = model(tmp_path / "models" / "blobs")
        (tmp_path / "models" / "snapshot").symlink_to(folder)

        assert model_folder(tmp_path / "models", "snapshot") == folder.resolve()

    def test_may_have_its_weights_in_parts(self, tmp_path: Path) -> None:
        model(tmp_path / "models" / "big", shards={"a": "model-1.safetensors", "b": "model-2.safetensors"})

        assert model_folder(tmp_path / "models", "big").name == "big"

    def test_needs_a_root(self) -> None:
        with pytest.raises(InvalidRequest, match=r"trainer\.traced_models"):
            model_folder(None, "mixtral")

    @pytest.mark.parametrize("path", ["../outside", "inside/../../outside", "/etc", "link"])
    def test_does_not_lie_outside(self, tmp_path: Path, path: str) -> None:
        outside = model(tmp_path / "outside")
        model(tmp_path / "models" / "inside")
        (tmp_path / "models" / "link").symlink_to(outside)

        with pytest.raises(InvalidRequest, match="does not stay below"):
            model_folder(tmp_path / "models", path)

    def test_does_not_take_weights_from_outside(self, tmp_path: Path) -> None:
        model(tmp_path / "models" / "sly", shards={"a": "../../weights.safetensors"})

        with pytest.raises(InvalidRequest, match="does not stay below"):
            model_folder(tmp_path / "models", "sly")

    @pytest.mark.parametrize("path", ["none", "with\x00nothing", "no-weights"])
    def test_that_is_not_there_is_not_found(self, tmp_path: Path, path: str) -> None:
        model(tmp_path / "models" / "no-weights").joinpath("model.safetensors").unlink()

        with pytest.raises(NotFound, match="safetensors"):
            model_folder(tmp_path / "models", path)

    def test_with_an_adapter_is_refused(self, tmp_path: Path) -> None:
        folder = model(tmp_path / "models" / "adapted")
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')

        with pytest.raises(InvalidRequest, match="adapter"):
            model_folder(tmp_path / "models", "adapted")
