"""What one endpoint accepts: from the operator's settings, from ``doctor`` or from its refusals.

None of it is part of a judge's identity. An endpoint that refuses a parameter is asked without it,
and the identity of its verdicts remains what the operator configured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

StructuredForm = Literal["json_schema", "json_object", "text"]
FORMS: tuple[StructuredForm, ...] = ("json_schema", "json_object", "text")
"""Forms of structured output, the strictest first."""
FORM_RETRY_S = 1800.0
"""After this one call tries a refused form again."""


@dataclass(slots=True)
class Capabilities:
    """What this process knows of one endpoint. Times are the event loop's.

    ``changed`` is called with what is sent differently from now on, and how.
    """

    forms: tuple[StructuredForm, ...] = FORMS
    """The forms that the operator allows, in the order of trial."""
    initial_form: StructuredForm | None = None
    """The form to begin with, where ``doctor`` has determined one."""
    changed: Callable[[str, str], None] = lambda _what, _detail: None
    omitted: set[str] = field(default_factory=set)
    """Parameters that we send by default and that the endpoint refuses."""
    length_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    max_reply_tokens: int | None = None
    """The largest reply length that the endpoint accepts, where it named one."""
    _form: StructuredForm | None = None
    _retry_at: float = 0.0

    @property
    def best(self) -> StructuredForm:
        """The strictest form that is not known to fail."""
        return self.initial_form if self.initial_form in self.forms else self.forms[0]

    @property
    def form(self) -> StructuredForm:
        """The form in use."""
        return self._form or self.best

    def choose_form(self, now: float) -> StructuredForm:
        """Return the form for the next call; now and then one call tries the best form again."""
        if self._form is not None and now >= self._retry_at:
            # Moved on first, so that only one call tries it.
            self._retry_at = now + FORM_RETRY_S
            return self.best
        return self.form

    def simpler_form(self, form: StructuredForm) -> StructuredForm | None:
        """Return the next form to try after ``form``; ``None``: there is none."""
        rest = self.forms[self.forms.index(form) + 1 :]
        return rest[0] if rest else None

    def use_form(self, form: StructuredForm, now: float) -> None:
        """Use ``form`` from now on: it was answered where stricter forms were refused."""
        if form == self.form:
            return
        self._form = None if form == self.best else form
        self._retry_at = now + FORM_RETRY_S
        self.changed("structured_output", form)

    def omit(self, parameter: str) -> None:
        """Omit a parameter from now on."""
        if parameter not in self.omitted:
            self.omitted.add(parameter)
            self.changed("left_out", parameter)

    def rename_length(self) -> None:
        """Send the reply length as ``max_completion_tokens`` from now on."""
        if self.length_name == "max_tokens":
            self.length_name = "max_completion_tokens"
            self.changed("length_name", self.length_name)

    def cap_length(self, tokens: int) -> None:
        """Ask for replies of at most ``tokens`` from now on."""
        if self.max_reply_tokens is None or tokens < self.max_reply_tokens:
            self.max_reply_tokens = tokens
            self.changed("most_tokens", str(tokens))
