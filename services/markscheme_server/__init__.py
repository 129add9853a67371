"""The Markscheme service: rubrics and rewards over HTTP."""
