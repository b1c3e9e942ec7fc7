"""Before a replica serves: does this architecture compute through our cache what it computes on its own?

Models with unusual attention (linear layers, position biases built from masks, compressed caches) would otherwise
answer wrongly in silence.
"""

from typing import Final

import torch
from torch import Tensor

from services.expert_service.answer_text import AnswerText
from services.expert_service.batch import Span
from services.expert_service.model_runner import ModelRunner
from services.expert_service.sampling import TokenChooser
from services.expert_service.sequence import Sequence
from services.expert_service.sequence_gate import SequenceGate
from services.shared.errors import InvalidRequest
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import RoutingPlan, SequenceRequest
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import PlanMode

_NUM_TOKENS: Final = 6
_CUTS: Final = (((0, 4), (0, 1), (0, 3)), ((4, 1), (1, 4), (3, 1)), ((5, 1), (5, 1), (4, 2)))
"""Three passes over three sequences of unequal progress, so that rows are padded and end at different positions."""
_ERRORS: Final = (TypeError, AttributeError, RuntimeError, ValueError, IndexError)
_TOLERANCE: Final = {torch.float32: 1e-3}
_TOLERANCE_HALF: Final = 5e-2


def check_architecture(runner: ModelRunner, tokenizer: Tokenizer) -> None:
    """Read a few tokens in pieces through the cache and whole without it; InvalidRequest if the results differ.

    A model that cannot take keys and values run by run gets them in one piece from now on.
    """
    vocab_size = int(runner.model.config.get_text_config().vocab_size)
    token_ids = [(7 * position + 11) % vocab_size for position in range(_NUM_TOKENS)]
    with torch.inference_mode():
        expected_V = (
            runner.model(torch.tensor([token_ids], device=runner.device), use_cache=False).logits[0, -1].float()
        )
    try:
        logits_BV = _read_in_pieces(token_ids, runner, tokenizer)
    except _ERRORS:
        runner.copy_runs()
        try:
            logits_BV = _read_in_pieces(token_ids, runner, tokenizer)
        except _ERRORS as error:
            raise _unsupported(runner, f"{type(error).__name__}: {error}") from error
    tolerance = _TOLERANCE.get(runner.dtype, _TOLERANCE_HALF)
    difference = float((logits_BV - expected_V).abs().max() / expected_V.abs().max().clamp(min=1.0))
    if not difference <= tolerance:
        raise _unsupported(runner, f"its logits differ by {difference:.2g}")


def _read_in_pieces(token_ids: list[int], runner: ModelRunner, tokenizer: Tokenizer) -> Tensor:
    """Logits at the end of the same text in several sequences, which stand apart in the cache; [B, V]."""
    sequences = [_sequence(token_ids, runner, tokenizer) for _ in _CUTS[0]]
    places = [runner.places.take(_NUM_TOKENS) for _ in range(4)]
    if places[0] is None:
        raise InvalidRequest(
            f"expert_service.kv_cache_bytes is {runner.places.limit_bytes}: not enough for a sequence of {_NUM_TOKENS} "
            "tokens on this base model. Raise it.",
            param="expert_service.kv_cache_bytes",
        )
    try:
        # The second place stays empty: a pass over the others reads two runs.
        for sequence, place in zip(sequences, [places[0], *places[2:]], strict=True):
            sequence.place = place
        for cuts in _CUTS:
            spans = [Span(s, *cut) for s, cut in zip(sequences, cuts, strict=True) if s.place is not None]
            logits_BV = runner.forward(spans, runner.gates_before(spans))
    finally:
        for place in places:
            if place is not None:
                runner.places.give_back(place)
        runner.give_up_memory()
    return logits_BV.float()


def _sequence(token_ids: list[int], runner: ModelRunner, tokenizer: Tokenizer) -> Sequence:
    """A sequence of the base alone."""
    sampling, plan = SamplingParameters(max_new_tokens=1), RoutingPlan(mode=PlanMode.BASE)
    return Sequence(
        request=SequenceRequest(request_id="self-test", prompt_ids=tuple(token_ids), sampling=sampling, plan=plan),
        gate=SequenceGate.of(plan, None),
        adapters=(),
        chooser=TokenChooser(sampling, vocab_size=tokenizer.vocab_size, device=runner.device),
        text=AnswerText(tokenizer, prompt_ids=token_ids, stop=()),
    )


def _unsupported(runner: ModelRunner, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"{type(runner.model).__name__} cannot be served: read in pieces it does not compute what it computes whole "
        f"({reason[:300]}). Use a decoder with ordinary key/value attention in every layer, such as Llama, Mistral, "
        "Qwen, Gemma, GPT-2, GPT-NeoX or OPT.",
        param="base_model",
    )
