#!/bin/sh
# Write lock/*.txt: every package with its version and the hashes of its files, for CPython 3.11 on x86-64 Linux.
#   sh deploy/lock.sh             after a change of pyproject.toml or constraints.txt
# To move to newer versions, change them in constraints.txt first. Needs `pip install uv`.
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --quiet --generate-hashes --no-annotate --no-header \
        --constraint "${constraints:-constraints.txt}" \
        --python-version "${python:-3.11}" --python-platform x86_64-manylinux_2_28 "$@"
}
# The wheel of torch 2.13.0+cpu: PyTorch's own build for processors, which a machine's index may offer in place of the
# one for CUDA. A new version has another hash.
torch_cpu=6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
grep '^torch==' constraints.txt > "$folder/torch.in"
printf 'hatchling\neditables\nsetuptools\n' > "$folder/build.in"
compile "$folder/build.in" --output-file lock/build.txt

# PyTorch, and apart from it what only its builds for CUDA need.
compile "$folder/torch.in" --output-file "$folder/torch.txt"
cuda=$(grep -oE '^(nvidia|cuda|triton)[a-z0-9-]*' "$folder/torch.txt")
others=$(grep -oE '^[a-z0-9-]+==' "$folder/torch.txt" | tr -d '=' | grep -vxF -e torch -e "$cuda")
emit() { for name in "$@"; do printf -- '--no-emit-package %s ' "$name"; done; }
# shellcheck disable=SC2046,SC2086
compile "$folder/torch.in" $(emit torch $others) --output-file lock/cuda.txt
# shellcheck disable=SC2046,SC2086
compile "$folder/torch.in" $(emit $others $cuda) --output-file lock/torch.txt
# An index that serves the build for processors itself has its hash already.
if ! grep -q "$torch_cpu" lock/torch.txt; then
    {
        sed '$s/$/ \\/' lock/torch.txt
        echo "    --hash=sha256:$torch_cpu"
    } > "$folder/both"
    mv "$folder/both" lock/torch.txt
fi

apart=$(emit torch $cuda)
# shellcheck disable=SC2086
compile pyproject.toml "$folder/build.in" --extra server --extra otel $apart --output-file lock/service.txt
# shellcheck disable=SC2086
compile pyproject.toml "$folder/build.in" "$folder/torch.in" --extra train --extra demo $apart --output-file lock/trainer.txt
# The trainer with vLLM, for CUDA only: all but PyTorch, NVIDIA's packages too. vLLM wants these two older.
{
    grep -vE '^(fastapi|numpy)==' constraints.txt
    printf 'fastapi==0.136.3\nnumpy==2.3.5\n'
} > "$folder/vllm.txt"
constraints=$folder/vllm.txt compile pyproject.toml "$folder/build.in" "$folder/torch.in" --extra vllm --extra demo \
    --no-emit-package torch --no-emit-package markscheme --output-file lock/vllm.txt
# shellcheck disable=SC2086
compile pyproject.toml "$folder/build.in" "$folder/torch.in" --extra server --extra train --extra demo --extra dev $apart --output-file lock/all.txt
# The site's own environment: `make docs`. Some of its packages want a patch release.
# shellcheck disable=SC2086
python=3.11.5 compile pyproject.toml "$folder/build.in" --extra docs $apart --output-file lock/docs.txt
