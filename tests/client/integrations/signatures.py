"""Record the signatures of trainers that `markscheme.integrations` and its recipes rely on.

    python tests/client/integrations/signatures.py verl=PATH trl-1.16=PATH …

PATH is a wheel, or a folder that holds the package, such as a site-packages or a checkout.
"""

import ast
import json
import sys
import zipfile
from pathlib import Path

RECORD = Path(__file__).with_name("signatures.json")
_TRL = {
    "trl/trainer/grpo_trainer.py": [
        "GRPOTrainer._calculate_rewards",
        "GRPOTrainer._log_completion_extra",
        "GRPOTrainer._log_metric",
    ]
}
RELIED_ON = {
    "trl-1.13": _TRL,
    "trl-1.14": _TRL,
    "trl-1.15": _TRL,
    "trl-1.16": _TRL,
    "verl": {
        "verl/experimental/reward_loop/reward_manager/naive.py": [
            "NaiveRewardManager.__init__",
            "NaiveRewardManager.run_single",
        ],
        "verl/experimental/reward_loop/reward_manager/base.py": ["RewardManagerBase.__init__"],
        "verl/trainer/ppo/reward.py": ["load_reward_manager"],
        "verl/utils/import_utils.py": ["load_extern_object"],
    },
    "openrlhf": {
        "openrlhf/utils/agent.py": [
            "SingleTurnAgentExecutor.__init__",
            "SingleTurnAgentExecutor._fetch_rewards_via_http",
        ]
    },
    "slime": {"slime/rollout/rm_hub/__init__.py": ["batched_async_rm", "remote_rm"]},
    "verifiers": {
        "verifiers/v1/judge.py": ["Judge.score"],
        "verifiers/v1/trace.py": ["Trace.record_metric", "Trace.last_reply", "Trace.is_truncated"],
        "verifiers/v1/task.py": ["TaskData.prompt_text"],
    },
    "inspect_ai": {
        "inspect_ai/scorer/_metric.py": ["Score.unscored"],
        "inspect_ai/scorer/_scorer.py": ["scorer", "Scorer.__call__"],
    },
    "skyrl": {
        "skyrl/train/generators/skyrl_gym_generator.py": ["SkyRLGymGenerator.generate"],
    },
    "art": {"art/gather.py": ["gather_trajectory_groups"]},
    "tinker": {"tinker_cookbook/rl/types.py": ["EnvGroupBuilder.compute_group_rewards"]},
    "nemo_gym": {"nemo_gym/base_resources_server.py": ["SimpleResourcesServer.verify"]},
    "areal": {"areal/workflow/rlvr.py": ["RLVRWorkflow._compute_rewards"]},
    "ms_swift": {"swift/rewards/orm.py": ["AsyncORM.__call__", "ORM.__call__"]},
}
VERSIONS = {
    "trl-1.13": "1.13.0",
    "trl-1.14": "1.14.0",
    "trl-1.15": "1.15.0",
    "trl-1.16": "1.16.0",
    "verl": "0.9.1",
    "openrlhf": "0.11.2",
    "slime": "624b824a898ab0ec1fcb4d373004c7f3852bf515",
    "verifiers": "0.4.0",
    "inspect_ai": "0.3.285",
    "skyrl": "0.3.0",
    "art": "0.5.18",
    "tinker": "0.6.1",
    "nemo_gym": "07d6b0d07b22fcf530b4c211dae2ee23100428e4",
    "areal": "1.0.4",
    "ms_swift": "4.6.0",
}


def read(root: Path, name: str) -> str:
    if root.suffix == ".whl":
        with zipfile.ZipFile(root) as wheel:
            return wheel.read(name).decode()
    return (root / name).read_text("utf-8")


def signature(source: str, qualified: str) -> str:
    """Return a function's parameters as they are written; an overloaded one's last."""
    node: ast.AST = ast.parse(source)
    for part in qualified.split("."):
        assert isinstance(node, ast.Module | ast.ClassDef)
        node = [
            each
            for each in node.body
            if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and each.name == part
        ][-1]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{kind}({ast.unparse(node.args)})"


if __name__ == "__main__":
    made = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    for trainer, root in (argument.split("=", 1) for argument in sys.argv[1:]):
        made[trainer] = {
            "version": VERSIONS[trainer],
            "signatures": {
                f"{name}::{qualified}": signature(read(Path(root), name), qualified)
                for name, wanted in RELIED_ON[trainer].items()
                for qualified in wanted
            },
        }
    RECORD.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", "utf-8")
