"""Figures that are counted with arrays are those that loops over tokens count."""

from collections import Counter
from itertools import combinations, groupby, pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from services.traces.choices import LayerChoices
from services.traces.statistics.layer_figures import layer_figures
from services.traces.statistics.results import AnalysisOptions, LayerFigures

NUM_EXPERTS = 70  # more than fit into one word of bits
OPTIONS = AnalysisOptions(
    num_permutations=99, num_resamples=99, num_matrix_resamples=50, max_shuffles=4, num_lags=3, min_token_count=4
)


@pytest.fixture(scope="module")
def choices() -> LayerChoices:
    """Sequences of unequal length, some empty; tokens with one, two or three experts; few experts are popular."""
    generator = np.random.default_rng(5)
    lengths = np.array([0, 7, 1, 30, 12, 0, 25, 18, 3, 0])
    num_tokens = int(lengths.sum())
    popular = np.argsort(-generator.random((num_tokens, NUM_EXPERTS)) * np.linspace(4, 1, NUM_EXPERTS), axis=1)[:, :3]
    experts = np.where(np.arange(3) < generator.integers(1, 4, (num_tokens, 1)), popular % 9 * 8, -1)
    for row in experts:  # modulo may have made two the same
        row[:] = [*dict.fromkeys(row[row >= 0].tolist()), -1, -1, -1][:3]
    return LayerChoices(
        layer=0,
        num_experts=NUM_EXPERTS,
        experts=experts.astype(np.int32),
        weights=None,
        token_ids=generator.integers(0, 12, num_tokens),
        phases=np.ones(num_tokens, dtype=np.uint8),
        starts=np.concatenate(([0], np.cumsum(lengths))),
        domains=np.arange(10) % 2,
    )


@pytest.fixture(scope="module")
def figures(choices: LayerChoices) -> LayerFigures:
    return layer_figures(choices, num_domains=3, options=OPTIONS)


@pytest.fixture(scope="module")
def sequences(choices: LayerChoices) -> list[list[list[int]]]:
    """Of every sequence, of every token, its experts."""
    return [
        [[expert for expert in token if expert >= 0] for token in choices.experts[start:end].tolist()]
        for start, end in pairwise(choices.starts.tolist())
    ]


@pytest.fixture(scope="module")
def table(choices: LayerChoices, sequences: list[list[list[int]]]) -> np.ndarray:
    """Domain x expert."""
    counted = np.zeros((2, NUM_EXPERTS))
    for domain, sequence in zip(choices.domains, sequences, strict=True):
        for token in sequence:
            counted[domain, token] += 1
    return counted


def test_frequency(figures: LayerFigures, table: np.ndarray, sequences: list[list[list[int]]]) -> None:
    assert figures.frequency is not None
    shares = table / table.sum(axis=1, keepdims=True)

    np.testing.assert_allclose(figures.frequency.share.value[:2], shares, rtol=1e-4)
    assert figures.frequency.share.value[2] == (None,) * NUM_EXPERTS
    assert figures.frequency.tokens_by_domain == (
        sum(map(len, sequences[::2])),
        sum(map(len, sequences[1::2])),
        0,
    )


def test_independence(figures: LayerFigures, table: np.ndarray) -> None:
    assert figures.independence is not None
    used = table[:, table.sum(axis=0) > 0]
    expected = stats.chi2_contingency(used, correction=False)

    assert figures.independence.chi_square == pytest.approx(expected.statistic, rel=1e-5)
    assert figures.independence.degrees_of_freedom == expected.dof
    assert figures.independence.token_p_value == pytest.approx(expected.pvalue, rel=1e-4)
    assert figures.independence.cramers_v_uncorrected == pytest.approx(
        stats.contingency.association(used.astype(int), method="cramer"), rel=1e-4
    )


def test_divergence_and_information(figures: LayerFigures, table: np.ndarray) -> None:
    assert figures.divergence is not None
    assert figures.mutual_information is not None
    assert figures.entropy is not None

    assert figures.divergence.distance.value[0][1] == pytest.approx(jensenshannon(*table, base=2), rel=1e-4)
    assert figures.divergence.distance.value[0][2] is None
    joint = table / table.sum()
    apart = stats.entropy(joint.sum(axis=0), base=2) + stats.entropy(joint.sum(axis=1), base=2)
    assert figures.mutual_information.bits.value == pytest.approx(
        apart - stats.entropy(joint.ravel(), base=2), rel=1e-3
    )
    assert figures.entropy.bits.value == pytest.approx(stats.entropy(joint.sum(axis=0), base=2), rel=1e-4)


def test_specialisation(figures: LayerFigures, table: np.ndarray, sequences: list[list[list[int]]]) -> None:
    assert figures.specialisation is not None
    tokens = np.array([sum(map(len, sequences[::2])), sum(map(len, sequences[1::2]))])
    shares = table / table.sum(axis=1, keepdims=True)
    used = table.sum(axis=0) > 0
    lift = shares[:, used] / (table.sum(axis=0) / table.sum())[used]

    np.testing.assert_allclose(figures.specialisation.token_share.value[:2], table / tokens[:, None], rtol=1e-4)
    np.testing.assert_allclose(np.array(figures.specialisation.lift.value[:2])[:, used].astype(float), lift, rtol=1e-4)


def test_repetition_at_every_lag(figures: LayerFigures, sequences: list[list[list[int]]]) -> None:
    assert figures.autocorrelation is not None
    for lag, repeated in zip((1, 2, 3), figures.autocorrelation.repetition.value, strict=True):
        pairs = [pair for sequence in sequences for pair in zip(sequence, sequence[lag:], strict=False)]
        assert repeated == pytest.approx(np.mean([one[0] == other[0] for one, other in pairs]), rel=1e-5)


def test_neighbours_in_common(figures: LayerFigures, sequences: list[list[list[int]]]) -> None:
    assert figures.repetition is not None
    pairs = [pair for sequence in sequences for pair in pairwise(sequence)]

    assert figures.repetition.any.value == pytest.approx(
        np.mean([bool(set(one) & set(other)) for one, other in pairs]), rel=1e-5
    )
    assert figures.repetition.first_or_second.value == pytest.approx(
        np.mean([bool(set(one[:2]) & set(other[:2])) for one, other in pairs]), rel=1e-5
    )
    in_domain = [pair for sequence in sequences[1::2] for pair in pairwise(sequence)]
    assert figures.repetition.first_by_domain.value[1] == pytest.approx(
        np.mean([one[0] == other[0] for one, other in in_domain]), rel=1e-5
    )


def test_run_lengths(figures: LayerFigures, sequences: list[list[list[int]]]) -> None:
    assert figures.run_lengths is not None
    lengths = [
        len(list(run)) for sequence in sequences for _, run in groupby(token[0] for token in sequence)
    ]  # fmt: skip

    assert figures.run_lengths.mean.value == pytest.approx(np.mean(lengths), rel=1e-5)
    counted = Counter(lengths)
    for length, share in zip(figures.run_lengths.lengths, figures.run_lengths.share.value, strict=True):
        assert share == pytest.approx(counted[length] / len(lengths), rel=1e-5)


def test_transitions(figures: LayerFigures, sequences: list[list[list[int]]]) -> None:
    assert figures.transitions is not None
    counted = Counter((one[0], other[0]) for sequence in sequences for one, other in pairwise(sequence))

    assert {
        (row, column): count
        for row, counts in enumerate(figures.transitions.counts)
        for column, count in enumerate(counts)
        if count
    } == dict(counted)


def test_coactivation(figures: LayerFigures, sequences: list[list[list[int]]]) -> None:
    assert figures.coactivation is not None
    tokens = [token for sequence in sequences for token in sequence]
    chosen = Counter(expert for token in tokens for expert in token)
    together = Counter(pair for token in tokens for pair in combinations(sorted(token), 2))
    adjacent = Counter(tuple(sorted(pair)) for token in tokens for pair in pairwise(token))

    for one, other in [(0, 8), (8, 0), (16, 24), (64, 8)]:
        pair = (min(one, other), max(one, other))
        assert figures.coactivation.probability.value[one][other] == pytest.approx(
            together[pair] / chosen[one], rel=1e-4
        )
        assert figures.coactivation.adjacent_ranks[one][other] == pytest.approx(adjacent[pair] / chosen[one], rel=1e-4)
    assert figures.coactivation.probability.value[8][8] is None


def test_vocabulary(figures: LayerFigures, choices: LayerChoices) -> None:
    assert figures.vocabulary is not None
    assert choices.token_ids is not None
    first = choices.experts[:, 0]
    counts = {token: Counter(first[choices.token_ids == token].tolist()) for token in set(choices.token_ids.tolist())}
    shares = [max(count.values()) / count.total() for count in counts.values() if count.total() >= 4]

    assert figures.vocabulary.num_ids == len(shares)
    assert figures.vocabulary.specialisation.value == pytest.approx(np.mean(shares), rel=1e-5)


def test_overlap(figures: LayerFigures, sequences: list[list[list[int]]]) -> None:
    """Divided by how many experts a token of the sequence has."""
    assert figures.overlap is not None
    common = whole = 0.0
    for sequence in sequences:
        for one, other in pairwise(sequence):
            common += len(set(one) & set(other))
            whole += np.mean([len(token) for token in sequence])

    assert figures.overlap.share.value == pytest.approx(common / whole, rel=1e-5)


def test_reuse_distance(figures: LayerFigures, sequences: list[list[list[int]]]) -> None:
    assert figures.reuse_distance is not None
    distances, first = [], 0
    for sequence in sequences:
        last: dict[int, int] = {}
        for place, token in enumerate(sequence):
            for expert in token:
                if expert in last:
                    distances.append(place - last[expert])
                else:
                    first += 1
                last[expert] = place

    assert figures.reuse_distance.first_uses == pytest.approx(first / (first + len(distances)), rel=1e-5)
    for percentile, tokens in zip(figures.reuse_distance.percentiles, figures.reuse_distance.tokens.value, strict=True):
        assert tokens == np.percentile(distances, percentile, method="inverted_cdf")


def test_load(figures: LayerFigures, table: np.ndarray) -> None:
    assert figures.load is not None
    chosen = table.sum(axis=0)

    assert figures.load.imbalance.value == pytest.approx(chosen.std() / chosen.mean(), rel=1e-5)
    assert figures.load.max_violation.value == pytest.approx(chosen.max() / chosen.mean() - 1, rel=1e-5)
    assert figures.load.unused == tuple(np.flatnonzero(chosen == 0).tolist())


@pytest.mark.parametrize(
    ("lengths", "num_experts", "top_k"),
    [([0, 1, 1, 1], 65, 1), ([30, 30, 1], 8, 4), ([4, 5, 1, 0, 1], 130, 2), ([12, 3], 1, 1), ([2], 2, 2)],
)
def test_no_trace_is_too_small_to_say_what_there_is(lengths: list[int], num_experts: int, top_k: int) -> None:
    """Draws of sequences may have no pair of tokens, or none of the token ids that are looked at."""
    generator = np.random.default_rng(7)
    num_tokens = sum(lengths)
    odd = LayerChoices(
        layer=0,
        num_experts=num_experts,
        experts=np.argsort(generator.random((num_tokens, num_experts)))[:, :top_k].astype(np.int32),
        weights=None,
        token_ids=generator.integers(0, 2, num_tokens),
        phases=np.ones(num_tokens, dtype=np.uint8),
        starts=np.concatenate(([0], np.cumsum(lengths))),
        domains=np.arange(len(lengths)) % 2,
    )
    found = layer_figures(odd, num_domains=2, options=OPTIONS.model_copy(update={"min_token_count": 1}))

    assert found.num_tokens == num_tokens
    assert "NaN" not in found.model_dump_json()
