"""token-NNNNN.json: the same choices as in the binary trace, from files, folders and archives."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.shared.config import TraceSettings
from services.shared.errors import InvalidTrace
from services.traces.description import TraceSource
from tests.unit.traces.importers.recordings import codes, finding, imported, model_pass, read_or_refused, token_json

FILES = {
    "token-00000.json": token_json(0, [("PROMPT", [list(range(16))] * 2), ("GENERATE", [[3, 9], [1, 0]])]),
    "token-00001.json": token_json(1, [("GENERATE", [[9, 5], [1, 2]])]),
    "token-00010.json": token_json(10, [("GENERATE", [[9, 7], [4, 3]])]),
}


def folder(name: str) -> dict[str, bytes]:
    return {f"{name}/traces/{file}": json.dumps(content).encode() for file, content in FILES.items()}


def archive(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as opened:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return packed.getvalue()


EXPERIMENT = {
    **folder("expert-analysis/domain-1-code"),
    **folder("expert-analysis/domain-2-math"),
    "expert-analysis/summary.json": json.dumps({
        "experiment": "expert-analysis", "date": "2026-01-26", "model": "gpt-oss-20b-F16",
        "domains": [{"id": "domain-1-code", "tokens": 3, "size_mb": 0.01}, {"id": "domain-2-math", "tokens": 3}],
    }).encode(),
    "expert-analysis/domain-1-code/graphs/token-00000.json": b'{"token_id": 0, "metadata": {}, "nodes": []}',
}  # fmt: skip


class TestRead:
    def test_choices_are_read_in_the_order_of_tokens(self, tmp_path: Path) -> None:
        files = {name: json.dumps(FILES[name]).encode() for name in reversed(FILES)}
        trace = imported(tmp_path, files, domain="code")

        assert trace.description.source is TraceSource.TOKEN_JSON
        assert trace.description.domains == ("code",)
        assert trace.layer(0).experts.tolist() == [[3, 9], [9, 5], [9, 7]]
        assert trace.layer(1).experts.tolist() == [[1, 0], [1, 2], [4, 3]]
        assert trace.layer(0).phases.tolist() == [0, 1, 1]
        assert trace.layer(0).num_experts == 16
        assert {"warm_up", "shared_selection", "prompt_relabelled", "first_token_of_prompt"} <= codes(trace)

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
    def test_a_whole_experiment_is_read_from_its_archive(self, tmp_path: Path, mode: str) -> None:
        trace = imported(tmp_path, {"experiment.tar.gz": archive(EXPERIMENT, mode)})

        assert trace.description.domains == ("code", "math")
        assert trace.description.model == "gpt-oss-20b-F16"
        assert [sequence.prompt for sequence in trace.sequences] == [
            "expert-analysis/domain-1-code",
            "expert-analysis/domain-2-math",
        ]
        assert trace.layer(0).num_tokens == 6
        assert "files_not_read" not in codes(trace)

    def test_a_summary_may_name_domains(self, tmp_path: Path) -> None:
        summary = {"domains": [{"id": "domain-1-code", "domain": "poetry"}]}
        files = {**folder("domain-1-code"), "summary.json": json.dumps(summary).encode()}

        assert imported(tmp_path, files).description.domains == ("poetry",)
        assert imported(tmp_path, files, domains={"domain-1-code": "verse"}).description.domains == ("verse",)

    def test_the_same_in_two_forms_is_read_once(self, tmp_path: Path) -> None:
        records = b"".join([*model_pass(0, [[3, 9], [1, 0]]), *model_pass(1, [[9, 5], [1, 2]])])
        trace = imported(tmp_path, {**folder("domain-1-code"), "domain-1-code/tensor_trace.bin": records})

        assert trace.description.source is TraceSource.LLAMA_CPP
        assert finding(trace, "files_not_read").count == 3

    def test_a_file_that_is_cut_off_is_left_out(self, tmp_path: Path) -> None:
        files = folder("domain-1-code")
        last = "domain-1-code/traces/token-00010.json"
        files[last] = files[last][:-40]
        trace = imported(tmp_path, files)

        assert finding(trace, "truncated").message.startswith(last)
        assert trace.layer(0).experts.tolist() == [[3, 9], [9, 5]]

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            ({"expert_ids": ["a"]}, "entry 1: expert_ids is not a list"),
            ({"expert_ids": [1.5]}, "expert_ids is not a list"),
            ({"phase": "WARM"}, "phase is neither"),
            ({"layer_id": -1}, "layer_id is not a whole number"),
            ({"token_id": "0"}, "token_id is not a whole number"),
        ],
    )
    def test_what_cannot_be_is_refused_with_its_place(
        self, tmp_path: Path, entry: dict[str, object], reason: str
    ) -> None:
        token = token_json(0, [("GENERATE", [[3, 9]])])
        token["entries"][1] |= entry

        with pytest.raises(InvalidTrace, match=reason):
            imported(tmp_path, {"token-00000.json": json.dumps(token).encode()})

    def test_json_is_bounded_in_size_and_depth(self, tmp_path: Path) -> None:
        deep = b'{"token_id": 0, "entries": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

        with pytest.raises(InvalidTrace, match="nested too deeply"):
            imported(tmp_path, {"token-00000.json": deep})
        with pytest.raises(InvalidTrace, match=r"traces\.max_json_bytes"):
            imported(tmp_path, {"token-00000.json": deep}, limits=TraceSettings(max_json_bytes=1024))


class TestArchives:
    @pytest.mark.parametrize("name", ["../token-00000.json", "/etc/token-00000.json", "a/../../token-00000.json"])
    def test_names_that_lead_out_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidTrace, match="leads out of the archive"):
            imported(tmp_path, {"a.tar": archive({name: b"{}"}, "w")})

    def test_links_are_refused(self, tmp_path: Path) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as opened:
            link = tarfile.TarInfo("token-00000.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            opened.addfile(link)

        with pytest.raises(InvalidTrace, match="link or a device"):
            imported(tmp_path, {"a.tar": packed.getvalue()})

    def test_what_unpacks_to_too_much_is_refused(self, tmp_path: Path) -> None:
        bomb = archive({"a.bin": bytes(10 * 1024**2)})
        assert len(bomb) < 64 * 1024

        with pytest.raises(InvalidTrace, match=r"traces\.max_unpacked_bytes"):
            imported(tmp_path, {"a.tar.gz": bomb}, limits=TraceSettings(max_unpacked_bytes=1024**2))

    def test_too_many_files_are_refused(self, tmp_path: Path) -> None:
        many = archive({f"token-{number:05}.json": b"{}" for number in range(20)})

        with pytest.raises(InvalidTrace, match=r"traces\.max_files"):
            imported(tmp_path, {"a.tar.gz": many}, limits=TraceSettings(max_files=10))

    def test_headers_that_claim_to_be_huge_are_refused(self, tmp_path: Path) -> None:
        member = tarfile.TarInfo("huge")
        member.type, member.size = tarfile.XHDTYPE, 8**11 - 1

        with pytest.raises(InvalidTrace, match="no archive that can be read"):
            imported(tmp_path, {"a.tar": member.tobuf(tarfile.USTAR_FORMAT) + bytes(4096)})

    def test_ranges_of_zeros_take_no_room(self, tmp_path: Path) -> None:
        records = b"".join(model_pass(0, [[3, 9], [1, 0]])) + bytes(8 * 1024**2)
        imported(tmp_path, {"a.tar.gz": archive({"tensor_trace.bin": records})})

        (unpacked,) = tmp_path.glob("*-scratch/*")
        assert unpacked.stat().st_size == len(records)
        assert unpacked.stat().st_blocks * 512 < 1024**2

    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), mode=st.sampled_from(["w", "w:gz"]))
    def test_an_archive_that_is_cut_off_is_read_as_far_as_it_is_whole(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, mode: str
    ) -> None:
        whole = archive(EXPERIMENT, mode)
        length = data.draw(st.integers(0, len(whole)))
        read_or_refused(tmp_path_factory.mktemp("cut"), {"a.tar": whole[:length]})
