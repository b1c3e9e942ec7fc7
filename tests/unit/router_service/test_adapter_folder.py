"""Adapters in the operator's folder: only what is in it, and never through a link."""

import os
from pathlib import Path

import pytest

from services.router_service.adapter_folder import open_adapter
from services.shared.errors import InvalidRequest, NotFound


@pytest.fixture(name="root")
def adapters(tmp_path: Path) -> Path:
    """A folder with one adapter, and one beside it that must not be reached."""
    for folder in (tmp_path / "root" / "team" / "math", tmp_path / "root_evil", tmp_path / "root" / "pickled"):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(folder.name.encode())
    (tmp_path / "root" / "pickled" / "adapter_model.safetensors").rename(tmp_path / "root" / "pickled" / "model.bin")
    return tmp_path / "root"


class TestOpenAdapter:
    @pytest.mark.parametrize("absolute", [True, False])
    def test_opens_the_two_files(self, root: Path, absolute: bool) -> None:
        path = str(root / "team" / "math") if absolute else "team/math"

        with open_adapter(root, path) as files:
            contents = {file.filename: file.content.read() for file in files}

        assert contents == {"adapter_config.json": b"{}", "adapter_model.safetensors": b"math"}

    @pytest.mark.parametrize(
        "path", ["..", "../root_evil", "team/../../root_evil", "/etc", "/", ".", "", "team\\math", "team/ma\x00th"]
    )
    def test_paths_that_lead_elsewhere_are_forbidden(self, root: Path, path: str) -> None:
        with pytest.raises(InvalidRequest) as raised, open_adapter(root, path):
            pass

        assert raised.value.error_code == "adapter_path_forbidden"

    def test_a_sibling_with_the_same_beginning_is_elsewhere(self, root: Path) -> None:
        with pytest.raises(InvalidRequest), open_adapter(root, str(root.parent / "root_evil")):
            pass

    @pytest.mark.parametrize("link", ["folder", "file"])
    def test_links_are_not_followed(self, root: Path, link: str) -> None:
        if link == "folder":
            (root / "linked").symlink_to(root.parent / "root_evil")
        else:
            (root / "linked").mkdir()
            (root / "linked" / "adapter_config.json").write_text("{}")
            (root / "linked" / "adapter_model.safetensors").symlink_to(
                root.parent / "root_evil" / "adapter_model.safetensors"
            )

        with pytest.raises((InvalidRequest, NotFound)), open_adapter(root, "linked"):
            pass

    @pytest.mark.parametrize("path", ["team", "nobody", "team/math/adapter_config.json", "pickled", "x" * 3000])
    def test_where_no_adapter_is_none_is_found(self, root: Path, path: str) -> None:
        with pytest.raises(NotFound) as raised, open_adapter(root, path):
            pass

        assert raised.value.error_code == "adapter_path_not_found"

    def test_a_pipe_in_place_of_a_file_does_not_hold_it_up(self, root: Path) -> None:
        (root / "pipe").mkdir()
        (root / "pipe" / "adapter_config.json").write_text("{}")
        os.mkfifo(root / "pipe" / "adapter_model.safetensors")

        with pytest.raises(NotFound), open_adapter(root, "pipe"):
            pass

    def test_leaves_nothing_open(self, root: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for path in ("team/math", "nobody", "team"):
            try:
                with open_adapter(root, path):
                    pass
            except NotFound:
                pass

        assert len(os.listdir("/proc/self/fd")) == before
