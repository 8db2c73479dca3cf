"""How a policy's fault reaches the client whose request it ended."""

from http import HTTPStatus

from vllm.exceptions import GenerationError, GracefulHTTPError


class PolicyFailed(GracefulHTTPError, GenerationError):
    """HTTP 500, or an error event in a stream.

    vLLM passes the one kind through its engine client, and writes the other into streams without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, HTTPStatus.INTERNAL_SERVER_ERROR)
