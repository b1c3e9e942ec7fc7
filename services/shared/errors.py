"""Every error a caller can see. Each says what went wrong and what to do, and carries its HTTP status.

AmoeError
├── InvalidRequest 400          the request itself is wrong (param names the field)
│   ├── PromptTooLong 413       prompt plus new tokens exceed the base model's context
│   ├── InvalidDataset 422      a training file has a bad line
│   ├── InvalidAdapter 422      an adapter that cannot be served, with the reason
│   └── InvalidTrace 422        a recording of routing that cannot be read, with the file and the place
├── NotAuthorised 401           missing or wrong API key
├── NotFound 404                no expert, release, job, file, request of that name
├── Conflict 409                the state does not allow it (never retried by clients: x-should-retry: false)
├── PayloadTooLarge 413         more bytes than the configured limit
├── Overloaded 429              queues are full; Retry-After says when
├── Unavailable 503             a part is down; Retry-After says when
├── ExpertServiceFailed 502     the expert service broke off
├── OutOfRoom 507               disk or memory is full
└── JobFailed 500               a job ended with a reason (stored in its row, never raised over HTTP)
"""

from typing import Any, ClassVar


class AmoeError(Exception):
    """Base of all errors with a status, a stable string code and a message for the caller."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or type(self).code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The one error shape of the API: {"error": {message, type, param, code}}."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.error_code,
            }
        }


class InvalidRequest(AmoeError):
    """400: a field is missing, out of range or contradicts another."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class PromptTooLong(InvalidRequest):
    """413: prompt tokens plus max_new_tokens exceed the base model's context."""

    status = 413
    code = "prompt_too_long"


class InvalidDataset(InvalidRequest):
    """422: a training file cannot be used; the message names the line."""

    status = 422
    code = "invalid_dataset"


class InvalidAdapter(InvalidRequest):
    """422: an adapter cannot be served; the message says why and what would be accepted."""

    status = 422
    code = "invalid_adapter"


class InvalidTrace(InvalidRequest):
    """422: a recording of routing cannot be read; the message names the file, the place in it, and what to do."""

    status = 422
    code = "invalid_trace"


class NotAuthorised(AmoeError):
    """401: the API key is missing or wrong."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotFound(AmoeError):
    """404: nothing of that name."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Conflict(AmoeError):
    """409: the present state does not allow it."""

    status = 409
    type = "conflict_error"
    code = "conflict"


class PayloadTooLarge(InvalidRequest):
    """413: more bytes than the limit."""

    status = 413
    code = "payload_too_large"


class Overloaded(AmoeError):
    """429: the queue is full."""

    status = 429
    type = "overloaded"
    code = "overloaded"


class Unavailable(AmoeError):
    """503: a part that the request needs is not reachable."""

    status = 503
    type = "server_error"
    code = "unavailable"


class ExpertServiceFailed(AmoeError):
    """502: the expert service broke off or answered nonsense."""

    status = 502
    type = "generation"
    code = "expert_service_failed"


class OutOfRoom(AmoeError):
    """507: no disk or memory left for it."""

    status = 507
    type = "server_error"
    code = "out_of_room"


class JobFailed(AmoeError):
    """A job's reason for failing, in words its owner can act on."""

    code = "job_failed"
