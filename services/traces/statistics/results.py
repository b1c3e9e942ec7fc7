"""What an analysis finds, figure by figure. D domains, E experts of one layer, K choices a token, in the trace's order.

Each has its own `num_sequences` and `num_tokens`, those that it was counted from; sequences are independent of each
other, tokens are not.
"""

from enum import StrEnum
from typing import Final, Literal

from pydantic import Field

from services.traces.description import TraceDescription
from services.traces.statistics.estimate import Estimate, Frozen, Matrix, Number, Series

ANALYSIS_VERSION: Final = 1


class Part(StrEnum):
    """Which tokens are looked at; padding never is."""

    ALL = "all"
    PROMPT = "prompt"
    GENERATED = "generated"


class FigureName(StrEnum):
    """Of one layer, except `cache` (all layers in the order that they run) and `saturation` (two traces)."""

    FREQUENCY = "frequency"
    INDEPENDENCE = "independence"
    DIVERGENCE = "divergence"
    MUTUAL_INFORMATION = "mutual_information"
    ENTROPY = "entropy"
    SPECIALISATION = "specialisation"
    AUTOCORRELATION = "autocorrelation"
    REPETITION = "repetition"
    STICKINESS = "stickiness"
    RUN_LENGTHS = "run_lengths"
    TRANSITIONS = "transitions"
    COACTIVATION = "coactivation"
    VOCABULARY = "vocabulary"
    LOAD = "load"
    OVERLAP = "overlap"
    REUSE_DISTANCE = "reuse_distance"
    CACHE = "cache"
    SATURATION = "saturation"


class Figure(Frozen):
    """Counted from so many."""

    num_sequences: int
    num_tokens: int


class Frequency(Figure):
    """How often a domain's tokens go to an expert."""

    share: Matrix = Field(description="[D, E] share of a domain's assignments; a row sums to 1. Null: all domains'.")
    token_share: tuple[tuple[Number, ...], ...] = Field(
        description="[D, E] share of a domain's tokens that have the expert among their K; a row sums to K."
    )
    sequences_by_domain: tuple[int, ...]
    tokens_by_domain: tuple[int, ...]


class Independence(Figure):
    """Whether the experts depend on the domain, in the table of assignments, D x E."""

    cramers_v: Estimate = Field(description="With Bergsma's correction. p by domains permuted between sequences.")
    cramers_v_uncorrected: Number
    chi_square: Number
    degrees_of_freedom: int
    token_p_value: Number = Field(
        description="Of the chi-square as if assignments were independent. They are not: not valid, shown because it "
        "is what others report."
    )
    token_p_value_is_valid: Literal[False] = False


class Divergence(Figure):
    """How far apart domains' shares of assignments are."""

    distance: Matrix = Field(description="[D, D] Jensen-Shannon distance, base 2: 0 the same, 1 nothing in common.")
    mean_distance: Estimate = Field(description="Root of the mean divergence of all pairs of domains.")


class MutualInformation(Figure):
    """What an assignment tells of the domain."""

    bits: Estimate = Field(description="I(domain; expert).")
    share_of_domain_entropy: Number


class Entropy(Figure):
    """How many experts are in use."""

    bits: Estimate = Field(description="Entropy of the shares of assignments; null: log2 E.")
    effective_experts: Estimate = Field(description="2 to the entropy; null: E.")
    bits_by_domain: Series


class Specialisation(Figure):
    """Which expert is whose."""

    token_share: Matrix = Field(
        description="[D, E] OLMoE's domain specialisation: share of a domain's tokens that have the expert among "
        "their K. Null: what domains permuted between sequences have; q over all cells."
    )
    lift: Matrix = Field(description="[D, E] share of assignments in the domain over that in all; null 1.")
    uniform: float = Field(description="K / E, the share of tokens if all experts were alike.")


class Autocorrelation(Figure):
    """Whether a token's experts foretell those some tokens later, within a sequence."""

    lags: tuple[int, ...]
    repetition: Series = Field(description="P(first choice of t = first choice of t + lag).")
    indicator: Series = Field(
        description="Autocorrelation of the E indicators of being chosen, around their means in the sequence, pooled."
    )
    popularity: float = Field(description="Sum of squares of the shares of first choices: repetition by popularity.")


class Repetition(Figure):
    """Mixtral's table 5 (Jiang et al. 2024, arXiv:2401.04088): neighbours that have a choice in common."""

    first: Estimate = Field(description="P(the first choices are the same).")
    first_or_second: Estimate = Field(description="P(the first two choices have one in common).")
    any: Estimate = Field(description="P(all K choices have one in common).")
    first_by_domain: Series
    first_or_second_by_domain: Series
    any_by_domain: Series
    random_first: float = Field(description="1 / E.")
    random_first_or_second: float = Field(description="1 - C(E-2, 2) / C(E, 2), or 1 / E where K is 1.")
    random_any: float = Field(description="1 - C(E-K, K) / C(E, K).")


class Stickiness(Figure):
    """Repetition of the first choice beside what popular experts explain."""

    repetition: Estimate = Field(description="P(e_t = e_t+1); null: tokens shuffled within their sequence.")
    popularity: Estimate = Field(description="Sum of squared shares of first choices; null: 1 / E.")
    excess: Estimate = Field(description="repetition - popularity; null 0. Topics count as stickiness here.")
    excess_within: Estimate = Field(description="repetition - its null: beyond what the sequence's topic explains.")


class RunLengths(Figure):
    """How many tokens in a row have the same first choice; the ends of sequences end runs."""

    mean: Estimate
    lengths: tuple[int, ...] = Field(description="The last one stands for itself and all beyond.")
    share: Series = Field(description="Of runs, by length; null: geometric for each expert, by popularity.")


class Transitions(Figure):
    """From the first choice of a token to that of the next."""

    probability: Matrix = Field(description="[E, E] P(e_t+1 = column | e_t = row); null: shares of the next token's.")
    counts: tuple[tuple[int, ...], ...]
    stationary: tuple[Number, ...] = Field(description="[E] of the chain.")
    marginal: tuple[Number, ...] = Field(description="[E] shares of first choices.")
    stationary_distance: Estimate = Field(
        description="Total variation between the two; 0: the chain has settled. p compares with tokens in any order, "
        "where it is smaller by chance than in a sticky chain."
    )
    second_eigenvalue: Estimate = Field(
        description="Modulus; 0: the next choice forgets this one at once. Without an interval: it is the largest of "
        "many that are alike, and what was drawn around it held the truth in 75 to 80 % of cases, not in 95 %."
    )
    mixing_tokens: Number = Field(description="Relaxation time 1 / (1 - modulus), tokens.")


class Pair(Frozen):
    """Of co-activation: of the tokens that have `expert`, this share has `other` too."""

    expert: int
    other: int
    value: Number
    low: Number
    high: Number
    null: Number


class Coactivation(Figure):
    """Experts chosen together; not there where K is 1."""

    probability: Matrix = Field(
        description="[E, E] OLMoE's N_ij / N_i over all pairs: row is given, column comes too; asymmetric, diagonal "
        "null. Null: the others of a token by popularity."
    )
    adjacent_ranks: tuple[tuple[Number, ...], ...] = Field(
        description="[E, E] as OLMoE's released script counts: only pairs of neighbouring ranks. Not comparable."
    )
    strongest: tuple[Pair, ...] = Field(description="The ten most above their null.")


class SpecialisedToken(Frozen):
    """A token id and the expert that it goes to."""

    token_id: int
    expert: int
    share: float
    count: int


class Vocabulary(Figure):
    """Whether the input token itself decides."""

    specialisation: Estimate = Field(
        description="OLMoE's, K = 1: the largest share of a token id's occurrences that one expert is the first choice "
        "of, averaged over ids. Null: first choices shuffled within their sequence; never 1 / E, for it is a maximum."
    )
    min_count: int = Field(description="Occurrences that an id needs to be looked at.")
    num_ids: int
    by_expert: tuple[Number, ...] = Field(description="[E] the mean over the ids that the expert is the best of.")
    strongest: tuple[SpecialisedToken, ...]


class Load(Figure):
    """How evenly experts are used."""

    share: Series = Field(description="[E] of assignments; null 1 / E.")
    weight_share: tuple[Number, ...] | None = Field(description="[E] of gate weight, where it is known.")
    imbalance: Estimate = Field(description="Standard deviation over mean.")
    max_over_mean: Estimate
    max_violation: Estimate = Field(description="MaxVio of Wang et al. 2024 (arXiv:2408.15664): max / mean - 1.")
    sequence_max_violation: Number = Field(description="MaxVio within a sequence, averaged over sequences.")
    unused: tuple[int, ...] = Field(description="Experts that no token has.")


class Overlap(Figure):
    """Of a token's experts, those that the token before had too."""

    share: Estimate = Field(description="|S_t and S_t-1| / K.")
    random: float = Field(description="K / E.")


class ReuseDistance(Figure):
    """Tokens between two uses of an expert within a sequence; 1: in the next token again. First uses do not count."""

    percentiles: tuple[float, ...]
    tokens: Series = Field(description="By percentile.")
    first_uses: Number = Field(description="Share of assignments that had no use before them in their sequence.")


class CachePolicy(StrEnum):
    """What leaves a full cache."""

    LRU = "lru"
    """The one used longest ago."""
    LFU = "lfu"
    """The one used least often since it came in; of equals the one used longest ago."""
    LFU_AGING = "lfu_aging"
    """As LFU, with all counts halved from time to time."""
    BELADY = "belady"
    """The one that is used again last: no policy hits more often."""


class CacheCurve(Frozen):
    """One policy over `Cache.slots`."""

    policy: CachePolicy
    hit_rate: Series


class Cache(Figure):
    """Simulated caches of (layer, expert), token by token, layer by layer; empty at the start."""

    slots: tuple[int, ...]
    curves: tuple[CacheCurve, ...]
    num_accesses: int
    num_objects: int = Field(description="(layer, expert) that there are.")
    num_used: int = Field(description="Those that were used: more slots change nothing.")
    compulsory_misses: Number = Field(description="Share of accesses that are the first of their kind.")
    aging_accesses: int | None = Field(
        description="After so many LFU with aging halves its counts; null: ten times the slots."
    )
    left_out: str | None = Field(default=None, description="Why not all tokens are in it.")


class LayerFigures(Figure):
    """Of one layer and part; None where `missing` says why."""

    frequency: Frequency | None = None
    independence: Independence | None = None
    divergence: Divergence | None = None
    mutual_information: MutualInformation | None = None
    entropy: Entropy | None = None
    specialisation: Specialisation | None = None
    autocorrelation: Autocorrelation | None = None
    repetition: Repetition | None = None
    stickiness: Stickiness | None = None
    run_lengths: RunLengths | None = None
    transitions: Transitions | None = None
    coactivation: Coactivation | None = None
    vocabulary: Vocabulary | None = None
    load: Load | None = None
    overlap: Overlap | None = None
    reuse_distance: ReuseDistance | None = None
    missing: dict[FigureName, str] = Field(default_factory=dict)


class LayerAnalysis(Frozen):
    """One layer; a part without a token is not in it."""

    layer: int
    num_experts: int
    top_k: int
    parts: dict[Part, LayerFigures]


class SkippedLayer(Frozen):
    """A layer of which nothing can be learned."""

    layer: int
    reason: str


class AnalysisOptions(Frozen):
    """What the analysis may spend."""

    parts: tuple[Part, ...] = (Part.ALL, Part.PROMPT, Part.GENERATED)
    seed: int = 0
    num_permutations: int = Field(default=999, ge=99, description="Of domains between sequences.")
    num_resamples: int = Field(default=999, ge=99, description="Of sequences, for intervals.")
    num_matrix_resamples: int = Field(default=200, ge=50, description="For intervals of E x E matrices.")
    max_shuffles: int = Field(default=49, ge=4, description="Of tokens within their sequence.")
    shuffled_tokens: int = Field(
        default=500_000, ge=1, description="So many tokens are shuffled in all, however few shuffles that makes."
    )
    num_lags: int = Field(default=16, ge=1, le=1000)
    max_run_length: int = Field(default=16, ge=2)
    min_token_count: int = Field(default=10, ge=1, description="Of token ids whose specialisation is looked at.")
    cache_tokens: int = Field(default=2_000, ge=0, description="Simulated in each part; 0 for no simulation.")
    cache_slots: tuple[int, ...] = Field(default=(), description="By default eight steps to all (layer, expert).")
    cache_aging_accesses: int | None = Field(default=None, description="By default ten times the slots.")


class LayerEstimate(Frozen):
    """One number of one layer's figures."""

    layer: int
    estimate: Estimate


class PartOverview(Figure):
    """Of one part, over its layers. Tokens count once, however many layers they went through."""

    sequences_by_domain: tuple[int, ...]
    tokens_by_domain: tuple[int, ...]
    over_layers: dict[str, tuple[LayerEstimate, ...]] = Field(
        description="Every single number by `figure.field` (`independence.cramers_v`), for each layer that has it; its "
        "q values are over these layers."
    )
    cache: Cache | None = None


class AnalysisOverview(Frozen):
    """`analysis.json`: all but the layers' own figures, which are beside it (`layers/layer-00000.json`)."""

    format_version: Literal[1] = ANALYSIS_VERSION
    description: TraceDescription
    options: AnalysisOptions
    layers: tuple[int, ...] = Field(description="Those that figures were made of.")
    skipped: tuple[SkippedLayer, ...]
    parts: dict[Part, PartOverview]


class LayerSaturation(Figure):
    """Of one layer: the share of a token's experts that are already those of the final checkpoint."""

    layer: int
    saturation: Estimate = Field(description="OLMoE's: mean of |E_t and E_T| / K; null: both by their popularity.")
    random: float = Field(description="K / E.")


class Saturation(Frozen):
    """Two traces of the same tokens, the second of the final checkpoint."""

    layers: tuple[LayerSaturation, ...]
    left_out: tuple[SkippedLayer, ...]
    num_unmatched: int = Field(description="Sequences that only one of them has, or whose tokens differ.")
