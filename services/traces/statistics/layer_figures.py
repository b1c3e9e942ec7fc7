"""All figures of one layer and part, those that there is something for."""

from collections.abc import Callable

from services.traces.choices import LayerChoices
from services.traces.statistics.autocorrelation import autocorrelation
from services.traces.statistics.coactivation import coactivation
from services.traces.statistics.divergence import divergence
from services.traces.statistics.domain_tables import domain_tables
from services.traces.statistics.entropy import entropy
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.frequency import frequency
from services.traces.statistics.independence import independence
from services.traces.statistics.load import load
from services.traces.statistics.mutual_information import mutual_information
from services.traces.statistics.neighbours import Neighbours
from services.traces.statistics.overlap import overlap
from services.traces.statistics.permutations import DomainPermutations
from services.traces.statistics.repetition import repetition
from services.traces.statistics.resamples import Resamples
from services.traces.statistics.results import AnalysisOptions, Figure, FigureName, LayerFigures
from services.traces.statistics.reuse_distance import reuse_distance
from services.traces.statistics.run_lengths import run_lengths
from services.traces.statistics.sequence_counts import sequence_counts, without_empty_sequences
from services.traces.statistics.shuffles import Shuffles
from services.traces.statistics.specialisation import specialisation
from services.traces.statistics.stickiness import stickiness
from services.traces.statistics.transitions import transitions
from services.traces.statistics.vocabulary import vocabulary

_MAX_GROUPS = 1024
_MAX_MATRIX_GROUPS = 256


def layer_figures(choices: LayerChoices, *, num_domains: int, options: AnalysisOptions) -> LayerFigures:
    """Of choices that have a token, of the trace's sequences."""
    choices = without_empty_sequences(choices)
    counts = sequence_counts(choices)
    top_k = choices.experts.shape[1]
    resamples, few_resamples = (
        Resamples(counts.domains_N, num_domains, num_resamples=number, max_groups=groups, seed=options.seed)
        for number, groups in (
            (options.num_resamples, _MAX_GROUPS),
            (options.num_matrix_resamples, _MAX_MATRIX_GROUPS),
        )
    )
    permutations = DomainPermutations(
        counts.domains_N, num_domains, num_permutations=options.num_permutations, seed=options.seed
    )
    shuffles = Shuffles(
        choices, max_shuffles=options.max_shuffles, shuffled_tokens=options.shuffled_tokens, seed=options.seed
    )
    tables = domain_tables(counts, num_domains, resamples, permutations)
    neighbours = Neighbours(choices, counts, shuffles, resamples, num_lags=options.num_lags)
    makers: dict[FigureName, Callable[[], Figure]] = {
        FigureName.FREQUENCY: lambda: frequency(tables),
        FigureName.INDEPENDENCE: lambda: independence(tables),
        FigureName.DIVERGENCE: lambda: divergence(tables),
        FigureName.MUTUAL_INFORMATION: lambda: mutual_information(tables),
        FigureName.ENTROPY: lambda: entropy(tables),
        FigureName.SPECIALISATION: lambda: specialisation(tables, top_k),
        FigureName.AUTOCORRELATION: lambda: autocorrelation(counts, neighbours),
        FigureName.REPETITION: lambda: repetition(counts, neighbours, num_domains=num_domains, top_k=top_k),
        FigureName.STICKINESS: lambda: stickiness(counts, neighbours, resamples),
        FigureName.RUN_LENGTHS: lambda: run_lengths(
            choices, counts, neighbours, resamples, longest=options.max_run_length
        ),
        FigureName.TRANSITIONS: lambda: transitions(choices, counts, few_resamples, shuffles),
        FigureName.COACTIVATION: lambda: coactivation(choices, counts, few_resamples),
        FigureName.VOCABULARY: lambda: vocabulary(
            choices, counts, few_resamples, shuffles, min_count=options.min_token_count
        ),
        FigureName.LOAD: lambda: load(choices, counts, resamples, seed=options.seed),
        FigureName.OVERLAP: lambda: overlap(counts, neighbours, top_k=top_k),
        FigureName.REUSE_DISTANCE: lambda: reuse_distance(choices, counts, few_resamples, shuffles),
    }
    figures: dict[str, Figure] = {}
    missing: dict[FigureName, str] = {}
    for name, make in makers.items():
        try:
            figures[name.value] = make()
        except NoSuchFigure as error:
            missing[name] = str(error)
    return LayerFigures.model_validate({
        "num_sequences": counts.num_sequences, "num_tokens": choices.num_tokens, "missing": missing, **figures,
    })  # fmt: skip
