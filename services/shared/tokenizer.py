"""The base model's tokenizer without torch: encode, decode, stream, chat template, limits.

Reads `tokenizer.json` through the `tokenizers` library, so the router service stays free of torch
(transformers' AutoTokenizer imports it). Local folder or hub id.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import tokenizers
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.shared.errors import InvalidRequest

_TEMPLATE_TROUBLE: Final = (
    TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
)  # fmt: skip
"""The sandbox's refusals, and what a template may trip over in messages that it does not expect."""

REPLACEMENT: Final = "\ufffd"
_CONTEXT_KEYS: Final = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")
_ROPES_BY_LENGTH: Final = ("longrope", "su")
_MAX_TEMPLATE_OUTPUT: Final = 4 * 1024**2
_MAX_TEMPLATE_BYTES: Final = 1024**2
_LONGEST_REASON: Final = 300
_MARK: Final = "amoe_generation_mark"
_STREAM_CONTEXT_TOKENS: Final = 8
_MAX_TOKENS_PER_CHARACTER: Final = 8  # UTF-8 needs 4 bytes; more tokens than this are not a character but noise


class Tokenizer:
    """A base model's tokenizer. Immutable and thread-safe."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: frozenset[int] = frozenset(),
        max_context: int | None = None,
        vocab_size: int | None = None,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend
        self.eos_ids = eos_ids
        self.max_context = max_context
        self.vocab_size = vocab_size or backend.get_vocab_size(with_added_tokens=True)
        self.chat_template = chat_template
        self._special_tokens = dict(special_tokens or {})
        self.eos_id: int | None = backend.token_to_id(self._special_tokens.get("eos_token", ""))
        self.bos_id: int | None = backend.token_to_id(self._special_tokens.get("bos_token", ""))
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with the special tokens (usually bos) that the model expects at the start."""
        encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [list(encoding.ids) for encoding in encodings]

    def spans(self, text: str, *, add_special_tokens: bool = True) -> list[tuple[int, int, int]]:
        """Token ids with the characters of `text`, from and to, that each stands for."""
        # In a batch of one, because that lets other threads run meanwhile.
        [encoding] = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return [(token_id, *offsets) for token_id, offsets in zip(encoding.ids, encoding.offsets, strict=True)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """The token's own spelling, special tokens included: for display."""
        return self.decode([token_id], skip_special_tokens=False) or self._backend.id_to_token(token_id) or ""

    def piece(self, token_id: int) -> str:
        """The text that a token adds in the middle of a text, its leading space included."""
        before = self.decode(self._anchor)
        return self.decode([*self._anchor, token_id], skip_special_tokens=False)[len(before) :]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds, in order; joined they are the decoded text."""
        stream = TextStream(self)
        pieces = [stream.push(token_id) for token_id in ids]
        if pieces:
            pieces[-1] += stream.flush()
        return pieces

    def is_special(self, token_id: int) -> bool:
        """True for bos, eos and the like, which are not text."""
        return token_id in self.special_ids or token_id in self.eos_ids

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_mark: str = "",
    ) -> str:
        """Messages as one prompt by the model's template, run in a sandbox. Encode it with add_special_tokens=False.

        `generation_mark` is written around what the template encloses in `{% generation %}` (chat_turns.py). Without a
        template: `role: content` lines. Raises InvalidRequest when the template refuses the messages.
        """
        try:
            pieces = self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                **{_MARK: generation_mark},
                **self._special_tokens,
            )
            return _joined(pieces)
        except _TEMPLATE_TROUBLE as error:
            raise InvalidRequest(
                f"The chat template refuses these messages: {str(error)[:_LONGEST_REASON]}", param="messages"
            ) from error

    @cached_property
    def _anchor(self) -> list[int]:
        """A token of plain text, behind which others keep their spaces."""
        return self.encode("a", add_special_tokens=False)[-1:]

    @cached_property
    def _template(self) -> Any:
        """Compiled with the names that Hugging Face templates expect."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_template_error
        environment.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
        return environment.from_string(self.chat_template or _PLAIN_TEMPLATE)


class TextStream:
    """Decodes one sequence token by token; the pieces joined are the text that the whole would decode to.

    A token is decoded together with its predecessors, so that SentencePiece spaces come out right, and held back while
    it ends inside a multi-byte character. `prompt_ids` lend the first token its context; they add no text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_STREAM_CONTEXT_TOKENS:])
        self._start = 0
        self._end = len(self._ids)
        self._known = tokenizer.decode(self._ids) if self._ids else ""

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; often a word, sometimes nothing."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids[self._start :])
        unfinished = text.endswith(REPLACEMENT) and len(self._ids) - self._end < _MAX_TOKENS_PER_CHARACTER
        if len(text) <= len(self._known) or unfinished:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What was held back; an unfinished character becomes the replacement character."""
        return self._advance(self._tokenizer.decode(self._ids[self._start :]))

    def _advance(self, text: str) -> str:
        """Give out what is new and let the window start at the tokens given out last."""
        piece = text[len(self._known) :]
        self._start, self._end = self._end, len(self._ids)
        self._known = self._tokenizer.decode(self._ids[self._start : self._end])
        return piece


def load_tokenizer(base_model: str, *, chat_template: Path | None = None) -> Tokenizer:
    """The tokenizer of a local folder or hub id, with the template of a file instead of its own if one is given.

    Raises InvalidRequest when there is no `tokenizer.json`, or a template that cannot be used.
    """
    config = _json(base_model, "config.json")
    tokenizer_config = _json(base_model, "tokenizer_config.json", required=False)
    generation_config = _json(base_model, "generation_config.json", required=False)
    try:
        backend = tokenizers.Tokenizer.from_file(str(model_file(base_model, "tokenizer.json")))
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{base_model!r} has no tokenizer.json. Make one: AutoTokenizer.from_pretrained(...).save_pretrained().",
            param="base_model",
        ) from error
    backend.no_padding()
    backend.no_truncation()
    special = _special_tokens(base_model, tokenizer_config)
    return Tokenizer(
        backend,
        eos_ids=_eos_ids(generation_config, config, special, backend),
        max_context=max_context_of(config),
        vocab_size=_text_config(config).get("vocab_size"),
        chat_template=_read_template(chat_template) if chat_template else _chat_template(base_model, tokenizer_config),
        special_tokens=special,
    )


def model_file(base_model: str, name: str) -> Path:
    """A file of a model: in its folder, or from the hub (cached). Raises InvalidRequest when there is none."""
    folder = Path(base_model)
    if folder.is_dir():
        path = folder / name
        if path.is_file():
            return path
        raise InvalidRequest(f"{name} is missing in {base_model!r}.", param="base_model")
    if folder.is_absolute() or base_model.count("/") > 1 or base_model.startswith("."):
        raise InvalidRequest(f"The folder {base_model!r} does not exist; correct base_model.", param="base_model")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base_model, name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InvalidRequest(
            f"{name} of {base_model!r} is neither a local folder's nor to be had from the hub "
            f"({type(error).__name__}); set base_model to a local folder, or check the name and the network.",
            param="base_model",
        ) from error


def max_context_of(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that the model's configuration allows; None when it names no limit.

    LongRoPE ends where its second set of frequencies begins: which set is used depends on the longest sequence of a
    batch, so that one request would change another's answer.
    """
    text_config = _text_config(config)
    limits = [int(text_config[key]) for key in _CONTEXT_KEYS if text_config.get(key)][:1]
    rope = text_config.get("rope_parameters") or text_config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in _ROPES_BY_LENGTH:
        original = "original_max_position_embeddings"
        limits += [int(place[original]) for place in (rope, text_config) if place.get(original)]
    return min(limits, default=None)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Multimodal configurations keep the language model's part one level down."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def _json(base_model: str, name: str, *, required: bool = True) -> dict[str, Any]:
    """A JSON file of the model; {} when it may be absent and is."""
    try:
        path = model_file(base_model, name)
    except InvalidRequest:
        if required:
            raise
        return {}
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _special_tokens(base_model: str, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and so on by name."""
    merged = _json(base_model, "special_tokens_map.json", required=False) | dict(tokenizer_config)
    contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in merged.items()}
    return {key: value for key, value in contents.items() if key.endswith("_token") and isinstance(value, str)}


def _eos_ids(
    generation_config: Mapping[str, Any],
    config: Mapping[str, Any],
    special: Mapping[str, str],
    backend: tokenizers.Tokenizer,
) -> frozenset[int]:
    """The ids that end a text: generation config over model config, and the tokenizer's own."""
    declared = generation_config.get("eos_token_id", _text_config(config).get("eos_token_id"))
    ids = set(declared) if isinstance(declared, list) else {declared}
    ids.add(backend.token_to_id(special["eos_token"]) if "eos_token" in special else None)
    return frozenset(token_id for token_id in ids if isinstance(token_id, int))


def _read_template(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _MAX_TEMPLATE_BYTES:
        raise InvalidRequest(
            f"chat_template {str(path)!r} is no file of at most {_MAX_TEMPLATE_BYTES:,} bytes: correct the setting.",
            param="chat_template",
        )
    return path.read_text(encoding="utf-8")


def _chat_template(base_model: str, tokenizer_config: Mapping[str, Any]) -> str | None:
    """`chat_template.jinja`, or the tokenizer config's; of several the one named default."""
    try:
        return model_file(base_model, "chat_template.jinja").read_text(encoding="utf-8")
    except InvalidRequest:
        pass
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


class GenerationTag(Extension):
    """`{% generation %}` marks an assistant's words in templates for training: what it encloses, between two marks."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes up to `{% endgeneration %}`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        first, last = (nodes.Output([nodes.Name(_MARK, "load", lineno=line)], lineno=line) for _ in range(2))
        return [first, *body, last]


def _joined(pieces: Iterable[str]) -> str:
    """The whole text; a template that goes on and on is stopped on the way."""
    text, num_characters = [], 0
    for piece in pieces:
        text.append(piece)
        num_characters += len(piece)
        if num_characters > _MAX_TEMPLATE_OUTPUT:
            raise InvalidRequest(f"The chat prompt is longer than {_MAX_TEMPLATE_OUTPUT} characters.", param="messages")
    return "".join(text)


def _to_json(value: Any, **options: Any) -> str:
    """transformers' filter: unlike jinja2's it escapes nothing for HTML."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)


_PLAIN_TEMPLATE: Final = """\
{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
