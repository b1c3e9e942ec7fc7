"""Where held-out documents are cut."""

from pathlib import Path

import numpy as np
import pytest

from services.shared.config import Settings
from services.shared.errors import InvalidDataset
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.schemas.calibration import CalibrationJobSpec
from services.shared.training_text import Example
from services.trainer_worker.calibration.drawing import draw_prompts
from services.trainer_worker.calibration.prompts import CutText, Prompts

LONG = "Tom has 3 apples and buys 4 more. He gives 2 to Ann, who has 5 of her own. " * 12


@pytest.fixture(scope="module")
def base(demo_dir: Path) -> LoadedBase:
    return load_base_model(Settings(base_model=str(demo_dir / "base"), device="cpu"))


PROMPT, COMPLETION = "Tom has 3 apples and buys 4 more. How many? ", "He has 3 + 4 = 7 apples. The answer is 7."
ANSWERED = Example(PROMPT + COMPLETION, ((len(PROMPT), len(PROMPT + COMPLETION)),))
TOO_SHORT = (Example("Tom has.", None), Example(LONG, ((len(LONG) - 1, len(LONG)),)))


@pytest.fixture(scope="module")
def prompts(base: LoadedBase) -> Prompts:
    """Column 0: text with a completion, 1: other text, 2: text without room for two parts, 3: the base model's own."""
    files = dict.fromkeys(("a", "b"), f"file-{0:032x}")
    spec = CalibrationJobSpec(held_out=files, max_documents=8, max_tokens=64, prompt_tokens=(5, 20))
    examples = {0: [ANSWERED], 1: [Example(LONG, None)] * 12, 2: TOO_SHORT}
    return draw_prompts(examples, base, spec, num_experts=3)


def test_an_example_is_cut_where_its_completion_begins(base: LoadedBase, prompts: Prompts) -> None:
    assert prompts.cuts_B[prompts.columns == 0].tolist() == [len(base.tokenizer.encode(PROMPT))]


def test_other_text_is_cut_between_the_two_lengths(prompts: Prompts) -> None:
    cuts_B = prompts.cuts_B[prompts.columns == 1]
    assert len(cuts_B) == 8
    assert cuts_B.min() >= 5
    assert cuts_B.max() <= 20
    assert len(set(cuts_B.tolist())) > 1


def test_text_without_room_for_a_prompt_and_what_follows_is_left_out(prompts: Prompts) -> None:
    assert 2 not in prompts.columns


def test_the_base_models_own_text_is_known_too(prompts: Prompts) -> None:
    assert (prompts.columns == 3).sum() == 8


def test_no_text_at_all_is_refused() -> None:
    with pytest.raises(InvalidDataset, match="long enough"):
        Prompts.of({0: []})


def test_losses_before_and_after_the_cut_are_means_of_their_tokens() -> None:
    prompts = Prompts.of({0: [CutText((1, 2, 3, 4, 5), 2)], 1: [CutText((1, 2, 3), 2)]})
    nats_BT = np.array([[1.0, 2.0, 3.0, 7.0], [4.0, 6.0, 99.0, 99.0]])

    assert prompts.prompt_loss(nats_BT).tolist() == [1.0, 4.0]
    assert prompts.continuation_loss(nats_BT).tolist() == [4.0, 6.0]
