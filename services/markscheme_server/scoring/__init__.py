"""Scoring: rubrics for groups, verdicts for rollouts, and the rewards that follow."""
