"""The builtin judge: rubrics and verdicts by rules that code can decide, without a model."""
