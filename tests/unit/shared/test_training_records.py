"""Training records in CSV and Parquet: what is read, and complaints that name the place."""

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.shared import training_records
from services.shared.errors import InvalidDataset
from services.shared.training_text import Example, count_examples, iterate_examples, read_examples

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": 'ho, "you"\nthere'}]
RECORDS: list[dict[str, Any]] = [
    {"prompt": "2+2=", "completion": "4"},
    {"prompt": "", "completion": 'commas, "quotes" and\nbreaks'},
    {"prompt": "Grüße ", "completion": "aus Köln"},
]


def csv_file(tmp_path: Path, rows: list[list[str]], name: str = "upload", delimiter: str = ",") -> Path:
    path = tmp_path / name
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def parquet_file(tmp_path: Path, records: list[dict[str, Any]], **options: Any) -> Path:
    path = tmp_path / "upload"
    pq.write_table(pa.Table.from_pylist(records), path, **options)
    return path


def json_lines(tmp_path: Path, records: list[dict[str, Any]]) -> list[Example]:
    path = tmp_path / "twin"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return read_examples(path, filename="a.jsonl")


class TestCsv:
    @pytest.mark.parametrize(("filename", "delimiter"), [("a.csv", ","), ("A.TSV", "\t")])
    def test_is_read_as_json_lines_of_the_same_records_are(self, tmp_path: Path, filename: str, delimiter: str) -> None:
        rows = [["id", "completion", "prompt"], *(["7", each["completion"], each["prompt"]] for each in RECORDS)]

        examples = read_examples(csv_file(tmp_path, rows, delimiter=delimiter), filename=filename)

        assert examples == json_lines(tmp_path, RECORDS)

    def test_of_conversations_holds_them_as_json(self, tmp_path: Path) -> None:
        path = csv_file(tmp_path, [["messages"], [json.dumps(CHAT)]])

        assert read_examples(path, filename="a.csv") == json_lines(tmp_path, [{"messages": CHAT}])

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("question,answer\na,b\n", "line 2: holds 'question', 'answer'"),
            ("prompt;completion\na;b\n", "line 2: holds 'prompt;completion'"),
            ('text\n"two\nlines"\n\n"  "\n', "line 5: 'text' is empty"),
            ("prompt,completion\na,b\na\n", "line 3: has 1 cells where the header has 2"),
            ("prompt,completion\na,b\na,b,c\n", "line 3: has 3 cells"),
            ('text\nfine\n"bad"quote\n', "line 3: not CSV"),
            ('text\nfine\n"never closed\n\n', "line 3: not CSV"),
            ("text,text\na,b\n", "line 1: the header names a column twice"),
            ("messages\nhello\n", "line 2: 'messages' must be a JSON list"),
            ("messages\n{}\n", "line 2: 'messages' must be a list"),
            ("text\n", "a.csv is empty"),
            ("", "a.csv is empty"),
        ],
    )
    def test_complaints_name_the_line_where_the_record_begins(self, tmp_path: Path, content: str, reason: str) -> None:
        path = tmp_path / "upload"
        path.write_text(content)

        with pytest.raises(InvalidDataset, match=reason) as raised:
            read_examples(path, filename="a.csv")

        assert len(raised.value.message) < 300

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "upload"
        path.write_bytes("text\nGrüße\n".encode("utf-16"))

        with pytest.raises(InvalidDataset, match="line 1: byte 1 is not UTF-8"):
            read_examples(path, filename="a.csv")

    def test_a_quote_that_never_closes_costs_no_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training_records, "MAX_LINE_BYTES", 1000)
        path = tmp_path / "upload"
        path.write_text('text\n"' + "a line\n" * 10_000)

        with pytest.raises(InvalidDataset, match="line 2: a record longer than 1,000 bytes"):
            read_examples(path, filename="a.csv")


class TestParquet:
    @pytest.mark.parametrize("filename", ["a.parquet", "train-00000-of-00001"])
    @pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
    def test_is_read_as_json_lines_of_the_same_records_are(
        self, tmp_path: Path, filename: str, compression: str
    ) -> None:
        records = [{**record, "id": number} for number, record in enumerate(RECORDS * 500)]
        path = parquet_file(tmp_path, records, row_group_size=400, compression=compression)

        assert read_examples(path, filename=filename) == json_lines(tmp_path, RECORDS * 500)

    def test_of_conversations_holds_lists_of_messages(self, tmp_path: Path) -> None:
        path = parquet_file(tmp_path, [{"messages": CHAT}, {"messages": CHAT[:1]}])

        assert read_examples(path, filename="a.parquet") == json_lines(
            tmp_path, [{"messages": CHAT}, {"messages": CHAT[:1]}]
        )

    def test_a_null_is_no_value_so_forms_may_be_mixed(self, tmp_path: Path) -> None:
        mixed = [{"text": "whole", "prompt": None, "completion": None}, {"text": None, **RECORDS[0]}]

        assert read_examples(parquet_file(tmp_path, mixed), filename="a.parquet") == [
            Example("whole", None),
            Example("2+2=4", ((4, 5),)),
        ]

    @pytest.mark.parametrize(
        ("records", "reason"),
        [
            ([{"text": "fine"}, {"text": None}], "row 2: holds nothing"),
            ([{"text": "fine"}, {"text": " "}], "row 2: 'text' is empty"),
            ([{"text": 3}], "row 1: 'text' must be a string"),
            ([{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "b"}], "row 2: 'prompt' is missing"),
            ([{"question": "q", "answer": "a"}], "has the columns 'question', 'answer'"),
            ([{"messages": [{"role": "wizard", "content": "x"}]}], "row 1: each message needs a 'role'"),
        ],
    )
    def test_complaints_name_the_row(self, tmp_path: Path, records: list[dict[str, Any]], reason: str) -> None:
        with pytest.raises(InvalidDataset, match=reason):
            read_examples(parquet_file(tmp_path, records), filename="a.parquet")

    def test_no_rows_are_an_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "upload"
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)

        with pytest.raises(InvalidDataset, match="is empty"):
            read_examples(path, filename="a.parquet")

    @pytest.mark.parametrize("damage", ["cut", "overwritten", "no parquet"])
    def test_a_damaged_file_is_refused_in_words(self, tmp_path: Path, damage: str) -> None:
        path = parquet_file(tmp_path, [{"text": f"line {number}"} for number in range(5000)], row_group_size=2500)
        content = bytearray(path.read_bytes())
        content[len(content) // 4 : len(content) // 2] = b"\xff" * (len(content) // 2 - len(content) // 4)
        path.write_bytes({"cut": content[:-20], "overwritten": content, "no parquet": b"just words"}[damage])

        with pytest.raises(InvalidDataset, match="cannot be read as Parquet") as raised:
            count_examples(path, filename="a.parquet")

        assert len(raised.value.message) < 300

    def test_more_text_than_is_accepted_is_refused_before_it_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = parquet_file(tmp_path, [{"text": "x" * 1000 + str(number)} for number in range(100)], row_group_size=10)
        monkeypatch.setattr(training_records, "MAX_TEXT_BYTES", 50_000)

        with pytest.raises(InvalidDataset, match="holds too much to be read"):
            count_examples(path, filename="a.parquet")

    def test_a_row_that_is_too_long_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training_records, "MAX_LINE_BYTES", 100)

        with pytest.raises(InvalidDataset, match="row 2: longer than 100 characters"):
            read_examples(parquet_file(tmp_path, [{"text": "a"}, {"text": "x" * 200}]), filename="a.parquet")


@pytest.mark.parametrize("filename", ["a.jsonl", "a.csv", "a.parquet"])
def test_large_files_are_counted_in_little_memory(tmp_path: Path, filename: str) -> None:
    texts = [f"{number} " + "word " * 100 for number in range(20_000)]
    path = tmp_path / "upload"
    if filename.endswith("csv"):
        csv_file(tmp_path, [["text"], *([text] for text in texts)])
    elif filename.endswith("parquet"):
        parquet_file(tmp_path, [{"text": text} for text in texts], row_group_size=1000)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    del texts

    tracemalloc.start()
    try:
        num_examples = sum(1 for _ in iterate_examples(path, filename=filename))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert num_examples == 20_000
    assert peak_bytes < 2 * 1024**2
