"""The tokenizer without torch: streaming that joins to the whole, templates in a sandbox."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from services.shared.errors import InvalidRequest
from services.shared.tokenizer import TextStream, Tokenizer, load_tokenizer

TEXTS = [
    "Once upon a time, there was a dog.",
    "  two spaces,\n\nand\tlines  ",
    "héllo wörld — 日本語 テキスト 🎉👩‍👩‍👧 end",
    "def f(x):\n    return x + 1\n",
]


@pytest.fixture(scope="module", name="stories")
def stories_tokenizer(shared_material: Path) -> Tokenizer:
    return load_tokenizer(str(shared_material / "models" / "stories260K-hf"))


@pytest.fixture(scope="module", name="byte_level")
def byte_level_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A GPT-2 style byte-level BPE, trained here, loaded from a folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["the cat sat on the mat and the dog ate the hat"], trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"n_positions": 77, "vocab_size": 300, "eos_token_id": 0}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|end|>"}, "chat_template": "{{ ''.__class__.__mro__ }}"})
    )
    return load_tokenizer(str(folder))


HI = [{"role": "user", "content": "hi"}]


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The same tokenizer with another chat template."""
    changed = copy.copy(tokenizer)
    changed.__dict__.pop("_template", None)
    changed.chat_template = template
    return changed


class TestStreaming:
    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("fixture", ["stories", "byte_level"])
    def test_pieces_join_to_the_decoded_text(self, fixture: str, text: str, request: pytest.FixtureRequest) -> None:
        tokenizer: Tokenizer = request.getfixturevalue(fixture)
        ids = tokenizer.encode(text)
        pieces = tokenizer.tokens(ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == tokenizer.decode(ids) == text

    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("split", [1, 3, 6])
    def test_continues_a_prompt_with_its_spaces(self, stories: Tokenizer, text: str, split: int) -> None:
        ids = stories.encode(text)
        stream = TextStream(stories, ids[:split])
        answer = "".join(stream.push(token_id) for token_id in ids[split:]) + stream.flush()
        assert stories.decode(ids[:split]) + answer == text

    def test_never_shows_half_a_character(self, byte_level: Tokenizer) -> None:
        pieces = byte_level.tokens(byte_level.encode("日本🎉"))
        assert [piece for piece in pieces if piece] == ["日", "本", "🎉"]

    def test_gives_noise_up_in_the_end(self, byte_level: Tokenizer) -> None:
        stream = TextStream(byte_level)
        lone_byte = byte_level.encode("日")[0]
        assert "\ufffd" in "".join(stream.push(lone_byte) for _ in range(40))


class TestTokenizer:
    def test_agrees_with_transformers(self, stories: Tokenizer, shared_material: Path) -> None:
        reference = AutoTokenizer.from_pretrained(shared_material / "models" / "stories260K-hf")
        for text in TEXTS:
            assert stories.encode(text) == reference(text)["input_ids"]
        assert stories.encode_batch(TEXTS) == [stories.encode(text) for text in TEXTS]

    def test_knows_ends_and_limits(self, stories: Tokenizer, byte_level: Tokenizer) -> None:
        assert (stories.eos_ids, stories.bos_id, stories.max_context, stories.vocab_size) == ({2}, 1, 512, 512)
        assert (byte_level.eos_ids, byte_level.bos_id, byte_level.max_context) == ({0}, None, 77)
        assert stories.is_special(1)
        assert not stories.is_special(403)
        assert stories.token_text(2) == "</s>"

    def test_a_token_is_shown_with_the_space_that_it_brings(self, stories: Tokenizer, byte_level: Tokenizer) -> None:
        for tokenizer in (stories, byte_level):
            ids = tokenizer.encode("the cat and the dog", add_special_tokens=False)
            assert "".join(tokenizer.piece(token_id) for token_id in ids[1:]) in "the cat and the dog"
        assert stories.piece(2) == "</s>"

    def test_spans_lie_in_the_text(self, stories: Tokenizer) -> None:
        text = "Once upon a time, héllo."
        spans = stories.spans(text)
        assert [token_id for token_id, _, _ in spans] == stories.encode(text)
        assert "".join(text[start:stop] for _, start, stop in spans) == text

    def test_never_loads_torch(self) -> None:
        code = "import sys, services.shared.tokenizer; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestChatTemplate:
    def test_runs_in_a_sandbox(self, byte_level: Tokenizer) -> None:
        with pytest.raises(InvalidRequest, match="chat template"):
            byte_level.apply_chat_template([{"role": "user", "content": "hi"}])

    @pytest.mark.parametrize(
        "template",
        [
            "{{ messages.__class__.__base__.__subclasses__() }}",
            "{{ (messages | attr('__class__')).__mro__ }}",
            "{% for _ in range(10**9) %}x{% endfor %}",
            "{{ messages.append(1) }}",
            "{{ raise_exception('roles must alternate') }}",
            "{{ messages[0].content + 1 }}",
            "{{ 1 / 0 }}",
            "{{ messages[0].nothing.here }}",
            "{% for",
        ],
    )
    def test_trouble_in_it_is_the_callers_to_know(self, stories: Tokenizer, template: str) -> None:
        with pytest.raises(InvalidRequest, match="chat template"):
            with_template(stories, template).apply_chat_template(HI)

    def test_one_that_goes_on_and_on_is_stopped(self, stories: Tokenizer) -> None:
        endless = "{% for _ in range(99999) %}{% for _ in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"

        with pytest.raises(InvalidRequest, match="longer than"):
            with_template(stories, endless).apply_chat_template(HI)

    def test_knows_what_transformers_templates_use(self, stories: Tokenizer, shared_material: Path) -> None:
        template = (
            "{% for message in messages %}\n"
            "    {% if loop.first %}{{ bos_token }}{% endif %}\n"
            "    {% if message.content == 'skip' %}{% continue %}{% endif %}\n"
            "{{ '<' + message.role + '>' + message | tojson }}\n"
            "    {% generation %}{{ message.content | trim }}{% endgeneration %}\n"
            "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{{ strftime_now('%Y') | length }}"
        )
        messages = [{"role": "user", "content": " <é> "}, {"role": "user", "content": "skip"}]
        reference = AutoTokenizer.from_pretrained(shared_material / "models" / "stories260K-hf")

        rendered = with_template(stories, template).apply_chat_template(messages)

        assert rendered == reference.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )

    def test_a_file_can_take_the_models_place(self, shared_material: Path, tmp_path: Path) -> None:
        base = str(shared_material / "models" / "stories260K-hf")
        (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}!")

        assert load_tokenizer(base, chat_template=tmp_path / "chat.jinja").apply_chat_template(HI) == "hi!"
        with pytest.raises(InvalidRequest, match="no file"):
            load_tokenizer(base, chat_template=tmp_path / "nothing.jinja")

    def test_has_a_plain_default(self, stories: Tokenizer) -> None:
        prompt = stories.apply_chat_template([{"role": "user", "content": "hi"}])
        assert prompt == "<s>user: hi\nassistant:"


class TestMissing:
    def test_folders_and_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequest, match="does not exist"):
            load_tokenizer(str(tmp_path / "nowhere"))
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(InvalidRequest, match=r"no tokenizer\.json"):
            load_tokenizer(str(tmp_path))
