"""The prompts of a trace: the job's own, or those that come with the project."""

from collections.abc import Callable

from services.shared.errors import JobFailed, PromptTooLong
from services.shared.schemas.trace import PromptsFile, TraceJobSpec, TracePrompt, read_prompts_file
from services.traces.default_prompts import default_prompts
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.released import Released
from services.trainer_worker.tracing.recording import TokenizedPrompt
from services.trainer_worker.tracing.subject import Traced


def prompts_of(context: JobContext, spec: TraceJobSpec, release: Released | None) -> PromptsFile:
    """Inline, uploaded, or of a set. Raises JobFailed where the file is gone, InvalidDataset where it is none."""
    if spec.prompts is not None:
        return PromptsFile(prompts=spec.prompts)
    if spec.prompts_file is not None:
        path = context.storage.upload(spec.prompts_file)
        if not path.is_file():
            raise JobFailed(
                f"The file {spec.prompts_file} is no longer there: upload it again and submit a new job.",
                param="prompts_file",
                code="file_missing",
            )
        return read_prompts_file(path)
    if spec.prompt_set == "demo" or (spec.prompt_set == "auto" and is_demos(release)):
        return demo_prompts(per_domain=spec.prompts_per_domain, seed=spec.seed)
    return default_prompts(per_domain=spec.prompts_per_domain)


def is_demos(release: Released | None) -> bool:
    """Whether the release's experts are all of the demo's domains: then its base model reads little else, and general
    prompts would be strange to all of them alike."""
    return release is not None and {domain or name for name, domain in release.names_and_domains} <= {*DEMO_DOMAINS}


def demo_prompts(*, per_domain: int, seed: int) -> PromptsFile:
    """Held-out items of the demo's domains, which neither its base model nor its experts have read."""
    prompts = tuple(
        TracePrompt(id=f"{name}-{number}", domain=name, prompt=item.prompt)
        for name in DEMO_DOMAINS
        for number, item in enumerate(DOMAINS[name].generate(seed, per_domain, "held_out"), start=1)
    )
    return PromptsFile(experiment_name="demo", description="Held-out items of the demo's own domains.", prompts=prompts)


def tokenized(file: PromptsFile, spec: TraceJobSpec, subject: Traced) -> list[TokenizedPrompt]:
    """As the model reads them. Raises PromptTooLong for one that does not fit its context with its answer."""
    encode: Callable[[str], list[int]] = subject.tokenizer.encode
    prompts = [
        TokenizedPrompt(each.id, each.domain, each.prompt, encode(each.prompt), spec.max_tokens or each.n_predict)
        for each in file.prompts
    ]
    for prompt in prompts:
        num_tokens = len(prompt.token_ids)
        if num_tokens == 0 or num_tokens + prompt.max_tokens + 1 > subject.max_context:
            raise PromptTooLong(
                f"The prompt {prompt.id!r} of {prompt.domain!r} has {num_tokens} tokens and {prompt.max_tokens} are to "
                f"be generated; {subject.name} reads 1 to {subject.max_context} in all. Shorten it, or lower "
                "max_tokens.",
                param="prompts",
            )
    return prompts
