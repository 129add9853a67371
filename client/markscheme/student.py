"""Sample the student: any model behind an OpenAI-compatible endpoint."""

import os
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_retries import RetryTransport

from markscheme.errors import MarkschemeError
from markscheme.messages import MessageError, text_of
from markscheme.protocol import HeaderRetry
from markscheme.schema import Prompt, StudentResponse

API_KEY = "MARKSCHEME_STUDENT_API_KEY"
"""The variable that holds the endpoint's key, if it takes one."""
TEMPERATURE = 1.0
"""As in training: rollouts are contrasted that training would see."""
TIMEOUT = httpx.Timeout(connect=5.0, read=600.0, write=60.0, pool=600.0)
"""Seconds; a long response may take minutes."""
_PROMPT_AT_FAULT = (400, 413, 422)
"""Statuses that are about one prompt: others would meet the next prompt too."""


class StudentFailed(MarkschemeError):
    """The endpoint of the student does not answer, or refuses every prompt."""


class PromptRefused(MarkschemeError):
    """The student does not take this prompt; others may go well."""


class Student:
    """A model to sample. Safe to share between threads.

    Args:
        url: Base URL of the endpoint, such as `http://127.0.0.1:8000/v1`.
        model: The model's name there.
        max_tokens: Maximum tokens of a response.

    Raises:
        ValueError: The URL has no scheme.
    """

    def __init__(self, url: str, model: str, *, max_tokens: int) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the student's URL {url!r} must begin with http:// or https://")
        self.model, self.max_tokens = model, max_tokens
        self._url = f"{url.rstrip('/')}/chat/completions"
        key = os.environ.get(API_KEY)
        retry = HeaderRetry(
            total=4,
            backoff_factor=0.5,
            status_forcelist=[408, 409, 429, 500, 502, 503, 504],
            allowed_methods=["POST"],
        )
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT,
            transport=RetryTransport(retry=retry),
        )

    def sample(self, prompt: Prompt, count: int) -> list[StudentResponse]:
        """Return `count` responses to a prompt.

        Raises:
            PromptRefused: The endpoint does not take this prompt.
            StudentFailed: It cannot be reached, or refuses for another reason.
        """
        return [self._sample_once(prompt) for _ in range(count)]

    def _sample_once(self, prompt: Prompt) -> StudentResponse:
        messages: list[dict[str, Any]] = (
            [{"role": "user", "content": prompt}]
            if isinstance(prompt, str)
            else [message.model_dump(mode="json") for message in prompt]
        )
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": TEMPERATURE,
        }
        try:
            response = self._http.post(self._url, json=body)
        except httpx.HTTPError as error:
            raise StudentFailed(
                f"the student at {self._url} does not answer ({type(error).__name__})"
            ) from error
        if not response.is_success:
            words = " ".join(response.content[:300].decode("utf-8", "replace").split())
            failure = PromptRefused if response.status_code in _PROMPT_AT_FAULT else StudentFailed
            raise failure(
                f"the student at {self._url} answered with status {response.status_code}: {words}"
            )
        try:
            choice = response.json()["choices"][0]
            return StudentResponse(
                text=text_of(choice["message"].get("content")),
                truncated=choice.get("finish_reason") == "length",
            )
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
            MessageError,
        ) as error:
            raise StudentFailed(
                f"the answer of {self._url} is no chat completion; is the URL right (…/v1)?"
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
