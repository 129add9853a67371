"""The report page: one self-contained HTML file. Text of models and data sets is escaped."""

from html import escape
from pathlib import Path

from markscheme_train.demo.evaluate import PromptResult
from markscheme_train.demo.plots import criterion_plot, reward_plot, sanity_plot, seconds_plot
from markscheme_train.demo.result import Change, DemoResult

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem }
p { margin: .4rem 0 .8rem; max-width: 46rem } .lead { font-size: 1.1rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal }
svg { width: 100%; min-width: 34rem; height: auto; max-width: 46rem; display: block }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr));
  gap: .8rem }
.pair > div { border: 1px solid var(--line); background: var(--soft); border-radius: .4rem;
  padding: .6rem .8rem }
.text { white-space: pre-wrap; overflow-wrap: anywhere } .small { font-size: .87rem; opacity: .8 }
"""


def write_report(result: DemoResult, path: Path) -> None:
    """Write the page."""
    path.write_text(render_report(result), encoding="utf-8")


def render_report(result: DemoResult) -> str:
    """Return the page's HTML."""
    trained, held_out = result.trained, result.held_out
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Markscheme demo</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Markscheme demo</h1>
<p class="lead">SmolLM2-135M-Instruct, {len(result.records)} steps of ROPD: on the prompts it was
trained on the
reward went from {trained.before.reward:.2f} to {trained.after.reward:.2f}, on prompts it never saw
from
{held_out.before.reward:.2f} to {held_out.after.reward:.2f}.</p>
<p>Rubrics were induced by the rule-based judge from each prompt, one GPT-4 response and samples of
the student;
no language model judged anything. The numbers below come from fresh samples under one fixed rubric
a prompt,
the same before and after. The IFEval pass rate is the benchmark's own verifier on the same samples,
cut at 40
tokens; no reward ever saw it. ± is one standard error over samples, the prompts taken as given.</p>
{_table("Prompts trained on", trained)}
{_table("Held-out prompts", held_out)}
<h2>Reward by step</h2>
<p>The line is what training saw: the mean over the rollouts of each step, two prompts at a time, so
it also moves
with the choice of prompts. When the service makes a new rubric for a prompt, the line is measured
by that one.</p>
<div class="scroll">{reward_plot(result)}</div>
<h2>Criteria</h2>
<p>How many samples met each criterion on the trained prompts, before and after; those that moved
most.</p>
<div class="scroll">{criterion_plot(trained)}</div>
<h2>Is the reward being gamed?</h2>
<p>Shorter texts or made-up words would be cheap ways to meet some criteria. Words are looked up
among the
tokenizer's whole-word tokens and the words of prompts and teacher responses, so a few real words
count as none.</p>
<div class="scroll">{sanity_plot(result)}</div>
<h2>Before and after</h2>
<p>The first sample for the first trained prompt of each kind.</p>
{"".join(_pair(before, after) for before, after in result.examples())}
<h2>Time</h2>
<p>{result.seconds:.0f} seconds in all once the model was there; {result.unscored} rollouts went
unscored.</p>
<div class="scroll">{seconds_plot(result)}</div>
<p class="small">Prompts and instructions: IFEval (Zhou et al. 2023, Apache-2.0), with GPT-4's
responses of November
2023 published beside it. Model: SmolLM2-135M-Instruct (Apache-2.0).</p>
</body>
</html>
"""


def _table(title: str, change: Change) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td>{before}</td><td>{after}</td></tr>"
        for name, before, after in change.rows()
    )
    return (
        f'<h2>{title} ({len(change.before.results)})</h2><div class="scroll"><table>'
        f"<tr><th></th><th>before</th><th>after</th></tr>{rows}</table></div>"
    )


def _pair(before: PromptResult, after: PromptResult) -> str:
    return (
        f"<p><b>{escape(before.prompt.kind)}.</b> "
        f'<span class="text">{escape(before.prompt.prompt)}</span></p>'
        f'<div class="pair">{_text("before", before)}{_text("after", after)}</div>'
    )


def _text(when: str, result: PromptResult) -> str:
    reward = result.rewards[0]
    shown = "unknown" if reward is None else f"{reward:.2f}"
    verdict = "follows" if result.follows[0] else "does not follow"
    return (
        f'<div><div class="small">{when} · reward {shown} · IFEval: {verdict}</div>'
        f'<div class="text">{escape(result.samples[0].text)}</div></div>'
    )
