"""What becomes of a teacher's lines: read, cleaned, judged, counted."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.shared.errors import JobFailed
from services.shared.training_text import Example
from services.trainer_worker.demo.domains import DOMAINS, HELD_BACK_DOMAINS
from services.trainer_worker.expert_creation.answer_lines import read_answer
from services.trainer_worker.expert_creation.cleaning import Cleaned, clean
from services.trainer_worker.expert_creation.data_request import DataRequest
from services.trainer_worker.expert_creation.demo_teacher import DemoTeacher
from services.trainer_worker.expert_creation.generation import Generated, generate
from services.trainer_worker.expert_creation.kept_examples import read_kept, write_examples
from services.trainer_worker.expert_creation.near_duplicates import like_any, near_duplicates
from services.trainer_worker.expert_creation.preparation import _split
from services.trainer_worker.expert_creation.quality import without_outliers, without_repetitive

REQUEST = DataRequest("anything", "any", ())


def example(prompt: str, completion: str) -> Example:
    return Example(prompt + completion, ((len(prompt), len(prompt) + len(completion)),))


def line(prompt: object, completion: object) -> str:
    return json.dumps({"prompt": prompt, "completion": completion})


class TestReading:
    def test_a_bad_line_costs_nothing_but_itself_and_is_counted(self) -> None:
        text = "\n".join(
            [
                "Here are your examples:",
                "```json",
                line("Q1?\n", "A1."),
                '{"prompt": "Q2?", "completion": "A2."',
                line("Q3?\n", 3),
                line("Q4?\n", " "),
                line("", "A5."),
                json.dumps({"question": "Q6?", "answer": "A6."}),
                line("Q7?\n", "bell \x07"),
                line("Q8?\n", "half \ud800"),
                line("Q9?\n", "x" * 40_000),
                "[1, 2]",
                "",
                line("Q10?\n", "A10.\u2028"),
                "```",
            ]
        )

        answer = read_answer(text)

        assert [one.text for one in answer.examples] == ["Q1?\nA1.", "Q10?\nA10.\u2028"]
        assert answer.examples[0].completions == ((4, 7),)
        assert answer.dropped == {
            "not_json": 3,
            "not_an_example": 2,
            "empty": 2,
            "control_characters": 2,
            "too_long": 1,
        }

    def test_a_list_counts_as_its_lines(self) -> None:
        answer = read_answer(json.dumps([{"prompt": "a?", "completion": "b"}, 7], indent=2))

        assert [one.text for one in answer.examples] == ["a?b"]
        assert answer.dropped == {"not_json": 1}

    @pytest.mark.parametrize("text", ["", "I cannot help with that.", "[" * 100_000, "{" * 100_000, "\x00\ufffd" * 50])
    def test_rubbish_is_no_example(self, text: str) -> None:
        assert read_answer(text).examples == ()


class TestCleaning:
    def test_keeps_one_of_those_that_repeat_each_other(self) -> None:
        story = "The old keeper climbed the stairs to light the lamp for the ships that came home at night. " * 2
        examples = [
            example("Go on: ", story),
            example("Go on: ", story + "\n"),
            example("Go on: ", story.replace("night. The", "night; the")),
            example("Go on: ", "Quite another story, about a fox that lost its way in the snow."),
        ]

        cleaned = clean(examples, [])

        assert cleaned.kept == (examples[0], examples[3])
        assert cleaned.dropped == {"duplicate": 1, "near_duplicate": 1}

    def test_drops_what_something_is_measured_on(self) -> None:
        held_out = DOMAINS["chess_notation"].generate(0, 30, "held_out")
        fresh = DOMAINS["chess_notation"].generate(0, 30, "train")
        copied = [example(item.prompt, item.completion) for item in held_out[:10]]
        asked_alike = [example(item.prompt, "I do not know.") for item in held_out[10:20]]
        own = [example(item.prompt, item.completion) for item in fresh]

        cleaned = clean([*copied, *asked_alike, *own], [item.text for item in held_out])

        assert set(cleaned.kept) <= set(own)
        assert cleaned.dropped["contaminated"] >= 20
        assert len(cleaned.kept) >= 25

    def test_a_short_prompt_gives_nothing_away(self) -> None:
        kept = clean(
            [example("Write a poem.", " Roses are red.")], ["Write a poem. The sea is wide, the night is long."]
        )

        assert len(kept.kept) == 1

    @pytest.mark.parametrize("domain", HELD_BACK_DOMAINS)
    def test_a_generator_repeats_itself_little(self, domain: str) -> None:
        texts = [item.text for item in DOMAINS[domain].generate(1, 300, "train")]

        assert near_duplicates(list(dict.fromkeys(texts))).mean() < 0.05

    def test_a_chain_of_likes_keeps_more_than_its_first(self) -> None:
        words = [f"word{number:03}" for number in range(100)]
        chain = [" ".join([*[f"new{n:04}" for n in range(start)], *words[start:]]) for start in range(0, 30, 3)]

        marked = near_duplicates(chain)

        assert not marked[0]
        assert marked[1]
        assert not marked.all()
        assert (~marked).sum() >= 2
        assert like_any(chain, [chain[-1]])[-2:].all()

    def test_nothing_is_like_nothing(self) -> None:
        assert near_duplicates([]).tolist() == []
        assert like_any([], ["a text"]).tolist() == []
        assert like_any(["a text"], []).tolist() == [False]


class TestQuality:
    def test_drops_what_says_the_same_over_and_over(self) -> None:
        normal = [example(item.prompt, item.completion) for item in DOMAINS["recipes"].generate(0, 20, "train")]
        poison = [example("Repeat: ", "buy now! " * 40), example("Go: ", "a" * 500)]

        judged = without_repetitive([*normal, *poison, example("Say ", "ha ha ha")])

        assert judged.dropped == {"repetitive": 2}
        assert len(judged.kept) == 21

    def test_drops_what_is_far_from_the_others_or_known_by_heart(self) -> None:
        generator = np.random.default_rng(0)
        losses = np.concatenate([generator.normal(3.0, 0.3, 97), [0.001, 9.0, 0.3]])
        examples = [example(f"{number}?", "!") for number in range(100)]
        tokens = np.full(100, 20)
        tokens[0] = 2

        judged = without_outliers(examples, losses, tokens)

        assert judged.dropped == {"too_easy": 2, "outlier": 1, "too_short": 1}
        assert judged.kept == tuple(examples[1:97])

    def test_keeps_examples_that_are_all_alike_in_loss(self) -> None:
        examples = [example(f"{number}?", "!") for number in range(10)]

        assert without_outliers(examples, np.full(10, 2.0), np.full(10, 9)).kept == tuple(examples)
        assert without_outliers([], np.zeros(0), np.zeros(0)).kept == ()


class Scripted:
    """Says the nth answer to the nth question, then fails."""

    examples_per_request = 2

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.asked: list[int] = []

    def ask(self, request: DataRequest, *, count: int, number: int) -> str:
        self.asked.append(number)
        if number >= len(self.answers):
            raise JobFailed("It is away.", code="teacher_unavailable")
        return self.answers[number]


class TestGeneration:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Callable[..., Generated]:
        def run(teacher: Scripted | DemoTeacher, wanted: int) -> Generated:
            return generate(
                teacher,
                REQUEST,
                wanted=wanted,
                folder=tmp_path / "answers",
                clean=lambda examples: clean(examples, []),
                on_answer=lambda num: None,
            )

        return run

    def test_ends_with_enough_though_half_the_lines_are_invalid(self, run: Callable[..., Generated]) -> None:
        answers = [f"{line(f'Question {n}?', f'Answer {n}.')}\nnot json\n" for n in range(8)]
        teacher = Scripted(*answers)

        generated = run(teacher, 4)

        assert len(generated.cleaned.kept) == 4
        assert generated.unreadable == Counter(not_json=4)
        assert teacher.asked == [0, 1, 2, 3]

    def test_asks_for_nothing_twice_after_an_interruption(self, run: Callable[..., Generated]) -> None:
        teacher = Scripted(line("First question?", "One."), line("Second question?", "Two."))
        with pytest.raises(KeyboardInterrupt):
            run(_Interrupted(teacher, at=1), 3)

        again = run(teacher, 2)

        assert teacher.asked == [0, 1]
        assert len(again.cleaned.kept) == 2

    def test_goes_on_with_what_there_is_when_the_teacher_fails(self, run: Callable[..., Generated]) -> None:
        generated = run(Scripted(line("First question?", "One.")), 3)

        assert len(generated.cleaned.kept) == 1
        assert generated.gave_up == "It is away."

    def test_fails_with_the_teacher_when_there_is_nothing(self, run: Callable[..., Generated]) -> None:
        with pytest.raises(JobFailed, match="It is away"):
            run(Scripted(), 3)

    @pytest.mark.parametrize("said", ["I am sorry.", line("The only question?", "Always the same.")])
    def test_ends_when_nothing_new_comes(self, run: Callable[..., Generated], said: str) -> None:
        teacher = Scripted(*[said] * 1000)

        generated = run(teacher, 100)

        assert len(teacher.asked) <= 6
        assert len(generated.cleaned.kept) <= 1

    def test_of_the_demo_is_the_same_again(self, run: Callable[..., Generated]) -> None:
        first = run(DemoTeacher.of("chess_notation"), 100)
        again = run(DemoTeacher.of("chess_notation"), 100)

        assert first == again
        assert len(first.cleaned.kept) >= 100

    def test_of_a_domain_that_is_not_held_back_is_refused(self) -> None:
        with pytest.raises(JobFailed, match="chess_notation") as failed:
            DemoTeacher.of("math")

        assert failed.value.error_code == "unknown_teacher"


class _Interrupted:
    """A teacher whose asker is killed at its nth question."""

    examples_per_request = 2

    def __init__(self, teacher: Scripted, *, at: int) -> None:
        self._teacher = teacher
        self._at = at

    def ask(self, request: DataRequest, *, count: int, number: int) -> str:
        if number == self._at:
            raise KeyboardInterrupt
        return self._teacher.ask(request, count=count, number=number)


class TestKeptExamples:
    def test_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        examples = [
            example("Question?\r\n", "Ans\u2028wer."),
            Example("Only a text\n\nof two paragraphs.", None),
            Example("user: a\nassistant: b\nuser: c\nassistant: d\n", ((9, 11), (22, 24))),
            Example("nothing of it is learned", ()),
        ]

        write_examples(tmp_path / "kept.jsonl", examples)

        assert read_kept(tmp_path / "kept.jsonl") == examples

    def test_are_lines_that_can_be_uploaded(self, tmp_path: Path) -> None:
        write_examples(tmp_path / "kept.jsonl", [example("a?", "b"), Example("c", None)])

        lines = (tmp_path / "kept.jsonl").read_text().splitlines()
        assert [json.loads(one) for one in lines] == [{"prompt": "a?", "completion": "b"}, {"text": "c"}]


@pytest.mark.parametrize(("num", "fraction", "held_out"), [(20, 0.05, 6), (20, 0.5, 10), (200, 0.05, 10)])
def test_enough_is_held_out_to_judge_by(num: int, fraction: float, held_out: int) -> None:
    parts = _split([example(f"Question {number}?", " Yes.") for number in range(num)], fraction)

    assert [len(part) for part in parts] == [num - held_out, held_out]


def test_what_was_kept_says_nothing_of_what_was_dropped() -> None:
    assert clean([], ["a text"]) == Cleaned((), Counter())
