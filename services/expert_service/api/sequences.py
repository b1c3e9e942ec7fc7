"""`POST /sequences` and `POST /scores`: generate, or only ask the gate."""

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from services.expert_service.dependencies import Replica, ReplicaDep
from services.expert_service.streaming import SequenceResponse
from services.shared.errors import AmoeError
from services.shared.schemas.sequences import ScoresRequest, ScoresResponse, SequenceRequest

router = APIRouter()


@router.post("/sequences", response_class=SequenceResponse)
async def generate(request: SequenceRequest, replica: ReplicaDep) -> SequenceResponse:
    """Stream a sequence's events as JSON lines. All that can be refused is refused before the first byte."""
    try:
        return await _begin(request, replica)
    except AmoeError as error:
        replica.metrics.rejected(error.error_code)
        raise


async def _begin(request: SequenceRequest, replica: Replica) -> SequenceResponse:
    replica.intake.check()
    sequence = await replica.admission.prepare(request)
    replica.gauges.note_names(sequence.adapters)
    replica.streams.open(sequence)
    try:
        replica.engine.submit(sequence)
    except BaseException:
        replica.streams.close(sequence)
        raise
    return SequenceResponse(sequence, replica.streams, replica.engine)


@router.post("/scores")
async def score(request: ScoresRequest, replica: ReplicaDep) -> ScoresResponse:
    """What the gate makes of a prompt, token by token, without generating."""
    replica.admission.check_prompt(request.prompt_ids)
    return await run_in_threadpool(_score, request, replica)


def _score(request: ScoresRequest, replica: Replica) -> ScoresResponse:
    scorer = replica.admission.scorer(request.plan)
    states_TD = None
    if (tap_layer := scorer.tap_layer) is not None:
        states_TD = replica.engine.run(lambda: replica.runner.trunk_states(request.prompt_ids, tap_layer)).result()
    scores_TC = scorer.advance(scorer.start(), request.prompt_ids, states_TD)
    weights_TC = scorer.weights(scores_TC, request.plan.candidates)
    return ScoresResponse(
        columns=scorer.columns,
        scores=tuple(map(tuple, scores_TC.tolist())),
        weights=tuple(map(tuple, weights_TC.tolist())),
    )
