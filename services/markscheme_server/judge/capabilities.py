"""What one endpoint takes: known from the operator's settings, from ``doctor``, or learnt from its refusals.

Nothing of this is part of a judge's identity: an endpoint that refuses a parameter is asked without
it, and the verdicts stay comparable by what the operator configured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

StructuredForm = Literal["json_schema", "json_object", "text"]
FORMS: tuple[StructuredForm, ...] = ("json_schema", "json_object", "text")
"""Forms of structured output, the strictest first."""
FORM_RETRY_S = 1800.0
"""After this a form that was refused is tried again, by one call."""


@dataclass(slots=True)
class Capabilities:
    """Learnt from the calls of this process to one endpoint. Times are the event loop's.

    ``changed`` hears what is asked differently from now on, and how, for the log and metrics.
    """

    forms: tuple[StructuredForm, ...] = FORMS
    """Those that the operator allows, in the order they are tried."""
    first: StructuredForm | None = None
    """The form to begin with, where ``doctor`` has found one out."""
    changed: Callable[[str, str], None] = lambda _what, _detail: None
    left_out: set[str] = field(default_factory=set)
    """Parameters that the endpoint refuses and that we had added by default."""
    length_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    most_tokens: int | None = None
    """The largest reply length that the endpoint accepts, where it said so."""
    _form: StructuredForm | None = None
    _retry_at: float = 0.0

    @property
    def best(self) -> StructuredForm:
        """The strictest form that is not known to fail."""
        return self.first if self.first in self.forms else self.forms[0]

    @property
    def form(self) -> StructuredForm:
        """The form in use."""
        return self._form or self.best

    def choose_form(self, now: float) -> StructuredForm:
        """The form for the next call. Once in a while one call tries the best form again."""
        if self._form is not None and now >= self._retry_at:
            self._retry_at = now + FORM_RETRY_S
            return self.best
        return self.form

    def simpler(self, form: StructuredForm) -> StructuredForm | None:
        """The next form to try after ``form``; ``None``: there is none."""
        rest = self.forms[self.forms.index(form) + 1 :]
        return rest[0] if rest else None

    def use_form(self, form: StructuredForm, now: float) -> None:
        """Note that a call in ``form`` was answered after stricter ones were refused, or that the best one works."""
        if form == self.form:
            return
        self._form = None if form == self.best else form
        self._retry_at = now + FORM_RETRY_S
        self.changed("structured_output", form)

    def leave_out(self, parameter: str) -> None:
        """Ask without a parameter from now on."""
        if parameter not in self.left_out:
            self.left_out.add(parameter)
            self.changed("left_out", parameter)

    def rename_length(self) -> None:
        """Name the reply's length ``max_completion_tokens`` from now on."""
        if self.length_name == "max_tokens":
            self.length_name = "max_completion_tokens"
            self.changed("length_name", self.length_name)

    def cap_length(self, most: int) -> None:
        """Never ask for a longer reply than ``most`` tokens from now on."""
        if self.most_tokens is None or most < self.most_tokens:
            self.most_tokens = most
            self.changed("most_tokens", str(most))
