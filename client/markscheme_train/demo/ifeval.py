"""The official IFEval verdict on a response: for evaluation only, no reward sees it.

The three kinds of instruction in the demo need neither NLTK's data nor language detection.
"""

from if_verifiable import IFEvalSample, evaluate_output_for_sample

from markscheme_train.demo.data import DemoPrompt


def follows(prompt: DemoPrompt, response: str) -> bool:
    """Return whether the response strictly obeys all instructions; an empty one does not."""
    if not response.strip():
        return False
    sample = IFEvalSample(
        key=0,
        prompt=prompt.prompt,
        instruction_id_list=prompt.instruction_id_list,
        kwargs=prompt.kwargs,
    )
    results, _ = evaluate_output_for_sample("ifeval", sample, response)
    return bool(results) and all(result.strict_pass for result in results)
