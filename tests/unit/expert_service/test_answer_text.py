"""Stop strings and streaming, character by character."""

import pytest

from services.expert_service.answer_text import AnswerText
from services.shared.schemas.sequences import TokenEvent
from tests.unit.expert_service.engine_parts import letters_tokenizer

TOKENIZER = letters_tokenizer()


def push_all(text: str, stop: tuple[str, ...]) -> tuple[list[str], AnswerText, bool]:
    """What each token releases."""
    answer = AnswerText(TOKENIZER, prompt_ids=TOKENIZER.encode("XY"), stop=stop)
    released = []
    for index, token_id in enumerate(TOKENIZER.encode(text)):
        event = TokenEvent(index=index, id=token_id, text="", logprob=0.0, special=False, gates={})
        piece = answer.push(event)
        released.append("".join(e.text for e in piece.events))
        if piece.stopped:
            return released, answer, True
    released.append("".join(e.text for e in answer.finish().events))
    return released, answer, False


class TestAnswerText:
    def test_gives_every_token_out_at_once_without_stop_strings(self) -> None:
        assert push_all("ABC", ())[0] == ["A", "B", "C", ""]

    def test_holds_back_only_what_may_become_a_stop_string(self) -> None:
        released, answer, stopped = push_all("ABABCAB", ("ABD",))
        assert released == ["", "", "AB", "", "ABC", "", "", "AB"]
        assert answer.text == "ABABCAB"
        assert not stopped

    def test_cuts_at_the_stop_string(self) -> None:
        released, answer, stopped = push_all("ABCDEF", ("never", "CDE"))
        assert released == ["A", "B", "", "", ""]
        assert (answer.text, stopped) == ("AB", True)

    def test_finds_the_first_of_several(self) -> None:
        assert push_all("ABCDEF", ("DE", "BCD"))[1].text == "A"

    def test_is_not_fooled_by_repeated_beginnings(self) -> None:
        assert push_all("AAAAB", ("AAB",))[1].text == "AA"

    @pytest.mark.parametrize("stop", [(), ("zz",)])
    def test_special_tokens_are_told_but_are_no_text(self, stop: tuple[str, ...]) -> None:
        answer = AnswerText(TOKENIZER, prompt_ids=[1], stop=stop)
        piece = answer.push(TokenEvent(index=0, id=2, text="", logprob=0.0, special=True, gates={}))
        assert [event.id for event in piece.events] == [2]
        assert answer.text == ""
