"""Does the collapse guard see collapses in time, and none where there is none?

    python -m training.collapse [--seeds 0-9] [--quick]

Runs on the copy task (`training.tasks`), through the unchanged trainer.
"""
