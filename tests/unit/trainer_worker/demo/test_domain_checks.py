"""What the domains' checks accept and refuse, by example; and what is true of the demo's text as a whole."""

import functools
from pathlib import Path

import pytest

from services.trainer_worker.demo.dataset_file import UnknownDomain, write_dataset
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, HELD_BACK_DOMAINS, Item, TooFewDistinctItems
from services.trainer_worker.demo.domains.fact_table import FACTS
from services.trainer_worker.demo.domains.factual import answer_to
from services.trainer_worker.demo.domains.math import work_out
from services.trainer_worker.demo.generic_text import generate_generic


@functools.cache
def _held_out(domain: str) -> list[Item]:
    return DOMAINS[domain].generate(0, 800, "held_out")


def _first(domain: str, template_part: str) -> Item:
    return next(item for item in _held_out(domain) if template_part in item.template)


class TestRegistry:
    def test_holds_the_five_demo_domains_and_at_least_three_kept_back(self) -> None:
        assert set(DEMO_DOMAINS) == {"code", "math", "creative", "factual", "mixed"}
        assert len(HELD_BACK_DOMAINS) >= 3
        assert all(domain.description for domain in DOMAINS.values())

    def test_says_which_domains_there_are_when_asked_for_another(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownDomain, match="chess_notation"):
            write_dataset("astrology", "train", 1, 0, tmp_path / "x.jsonl")

    def test_refuses_more_distinct_items_than_there_are(self) -> None:
        with pytest.raises(TooFewDistinctItems, match="factual"):
            DOMAINS["factual"].generate(0, 20_000, "held_out")


class TestGenericText:
    def test_repeats_for_the_same_seed_and_is_varied(self) -> None:
        texts = generate_generic(0, 1_000)

        assert texts == generate_generic(0, 1_000)
        assert len(set(texts)) > 990

    def test_is_of_no_domain(self) -> None:
        text = "\n".join(generate_generic(0, 1_000))

        assert not any(mark in text for mark in ("Question:", "Problem:", "def ", "Tale:", "Task:", "SELECT", "RECIPE"))


class TestFactual:
    def test_shows_every_fact_in_training(self) -> None:
        shown = {
            (item.check["relation"], item.check["subject"]) for item in DOMAINS["factual"].generate(0, 8_000, "train")
        }

        assert shown == {(fact.relation, fact.subject) for fact in FACTS}

    def test_has_hundreds_of_facts_that_do_not_contradict_each_other(self) -> None:
        assert len(FACTS) > 400
        assert len({(fact.relation, fact.subject) for fact in FACTS}) == len(FACTS)

    @pytest.mark.parametrize(
        ("answer", "right"), [(" Paris.\n", True), ("It is paris", True), ("Not Paris but Rome", False)]
    )
    def test_wants_the_value_at_the_end_of_the_first_line(self, answer: str, *, right: bool) -> None:
        item = Item("Question: ...", "", {"value": "Paris"}, "")

        assert DOMAINS["factual"].is_correct(item, answer) is right

    def test_does_not_take_a_number_for_its_last_digit(self) -> None:
        item = Item("Question: ...", "", {"value": "2"}, "")

        assert not DOMAINS["factual"].is_correct(item, "The atomic number of magnesium is 12.")

    def test_answers_end_in_the_value(self) -> None:
        assert all(answer_to(fact).endswith(f" {fact.value}.") for fact in FACTS)


class TestMath:
    def test_works_step_by_step(self) -> None:
        working = work_out(("a+b", "_*2"), {"a": 3, "b": 4})

        assert working is not None
        assert working.lines == ("3+4=7.", "7*2=14.")
        assert working.result == 14

    @pytest.mark.parametrize(("step", "left", "right"), [("a/b", 7, 2), ("a-b", 3, 3), ("a-b", 3, 8), ("a*b", 50, 2)])
    def test_avoids_fractions_zero_and_large_results(self, step: str, left: int, right: int) -> None:
        assert work_out((step,), {"a": left, "b": right}) is None

    def test_checks_the_final_number_only(self) -> None:
        item = Item("Problem: ...", "", {"answer": 14}, "")

        assert DOMAINS["math"].is_correct(item, " 7+7=15. The answer is 14.")
        assert not DOMAINS["math"].is_correct(item, " 7+7=14. The answer is 141.")

    def test_states_sums_that_are_true(self) -> None:
        for item in DOMAINS["math"].generate(0, 300, "train"):
            for line in item.completion.split("The answer")[0].split():
                left, _, right = line.rstrip(".").partition("=")
                assert eval(left.replace("/", "//")) == int(right)


class TestCode:
    def test_runs_another_solution_than_the_reference(self) -> None:
        item = _first("code", "list/backwards")
        name = item.prompt.split("(")[1].split(")")[0]
        loop = f"    turned = []\n    for element in {name}:\n        turned = [element] + turned\n    return turned\n"

        assert DOMAINS["code"].is_correct(item, loop)

    def test_ignores_what_follows_the_function(self) -> None:
        item = _first("code", "list/biggest")

        assert DOMAINS["code"].is_correct(item, item.completion + "\nimport os\n")

    @pytest.mark.parametrize(
        "answer", ["    return None\n", "return 1\n", "    return (\n", "    import os\n    return 1\n"]
    )
    def test_refuses_wrong_and_broken_bodies(self, answer: str) -> None:
        assert not DOMAINS["code"].is_correct(_first("code", "list/biggest"), answer)

    def test_tells_true_from_one(self) -> None:
        item = _first("code", "pair/is_same")

        assert not DOMAINS["code"].is_correct(item, "    return 0\n")


class TestCreative:
    def test_wants_the_holder_and_nobody_else(self) -> None:
        item = _first("creative", "possession")
        holder, other = item.check["required"][0], item.check["forbidden"][0]

        assert DOMAINS["creative"].is_correct(item, f"It stayed with {holder} for ever.")
        assert not DOMAINS["creative"].is_correct(item, f"{holder} gave it to {other}.")

    def test_wants_a_rhyme_but_not_the_same_word(self) -> None:
        item = _first("creative", "couplet")
        same = item.prompt.strip().rstrip(",").split()[-1]

        assert DOMAINS["creative"].is_correct(item, f"and there was also a {item.check['last_word'][0]}.")
        assert not DOMAINS["creative"].is_correct(item, f"and there was also a {same}.")


class TestMixed:
    def test_wants_result_and_call(self) -> None:
        item = _first("mixed", "call/")

        assert not DOMAINS["mixed"].is_correct(item, f"Call: guess()\nResult: {item.check['result']}\n")
        assert not DOMAINS["mixed"].is_correct(item, f"Call: {item.check['call']}\nResult: 1000\n")

    def test_runs_the_function_that_holds_the_fact(self) -> None:
        item = _first("mixed", "fact function")
        function, value = item.check["function"], item.check["returns"]

        assert DOMAINS["mixed"].is_correct(item, f'def {function}():\n    city = "{value}"\n    return city\n')
        assert not DOMAINS["mixed"].is_correct(item, f'def {function}():\n    return "Atlantis"\n')
