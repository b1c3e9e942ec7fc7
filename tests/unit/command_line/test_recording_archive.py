"""Folders and large files are sent as one archive, without the zeros that sparse files end with."""

import tarfile
from pathlib import Path

import pytest

from services.command_line.errors import BadInput
from services.command_line.recording_archive import packed


class TestPacked:
    def test_small_files_are_sent_as_they_are(self, tmp_path: Path) -> None:
        file = tmp_path / "routes.jsonl"
        file.write_text("{}")

        with packed([file]) as files:
            assert files == [file]

    def test_folders_become_an_archive_of_plain_files(self, tmp_path: Path) -> None:
        folder = tmp_path / "experiment" / "domain-1-code"
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text("{}")
        (folder / "link").symlink_to("/etc/passwd")

        with packed([tmp_path / "experiment"]) as (archive,), tarfile.open(archive) as opened:
            assert opened.getnames() == ["experiment/domain-1-code/a.jsonl"]
            assert opened.getmembers()[0].uname == ""

    def test_a_sparse_files_last_zeros_stay_behind(self, tmp_path: Path) -> None:
        file = tmp_path / "tensor_trace.bin"
        file.write_bytes(b"\1" * 4096)
        with file.open("r+b") as opened:
            opened.truncate(2 * 1024**3)

        with packed([file]) as (archive,), tarfile.open(archive) as opened_archive:
            (member,) = opened_archive.getmembers()
            content = opened_archive.extractfile(member)
            assert content is not None
            assert 4096 < member.size < 64 * 1024**2
            assert content.read(4097) == b"\1" * 4096 + b"\0"

    def test_what_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="is not there"), packed([tmp_path / "none"]):
            pass
