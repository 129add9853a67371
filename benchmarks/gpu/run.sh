#!/usr/bin/env bash
# The trainer on a CUDA card: every part bounded, in at most nine minutes together. See docs/training.md.
#
#   benchmarks/gpu/run.sh [--small]      # --small: tiny sizes, also without a GPU, in at most four minutes
#
# Needs the tree and, where the installed packages are older than ours or missing, build/gpu-wheels
# (`make gpu-wheels`). Uses no network. Settings from the environment:
#   OUT      where the results go (default: benchmarks/results)
#   PYTHON   the interpreter that has torch (default: python3)
#   WHEELS   where the wheels lie (default: build/gpu-wheels)
#   PARTS    which parts, as "module:seconds ..." (default: all)
#   TOTAL_S  the limit of the whole run (default: 540, with --small 240)
set -uo pipefail
cd "$(dirname "$0")/../.."

small=""
for word in "$@"; do
    case $word in
        --small) small=--small ;;
        *) echo "usage: $0 [--small]" >&2; exit 2 ;;
    esac
done
if [ -n "$small" ]; then
    parts=${PARTS:-gpu.environment:60 gpu.gradients:75 gpu.steps:75 gpu.shards:75 gpu.service_run:75}
    total_s=${TOTAL_S:-240}
else
    parts=${PARTS:-gpu.environment:75 gpu.gradients:90 gpu.steps:200 gpu.shards:120 gpu.service_run:120}
    total_s=${TOTAL_S:-540}
fi
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
stem=$out/gpu${small:+-small}-$(date -u +%F)
wheels=${WHEELS:-build/gpu-wheels}
site=$PWD/build/gpu-site
paths=$PWD/services:$PWD/client:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}

mkdir -p build "$out" || exit 1
workdir=$(mktemp -d "$PWD/build/gpu-run-XXXXXX") || exit 1
trap 'rm -rf "$workdir"' EXIT
child=
trap 'kill $child 2>/dev/null; exit 143' TERM
trap 'kill $child 2>/dev/null; exit 130' INT

export PYTHONPATH=$paths PYTHONUNBUFFERED=1
export TRL_EXPERIMENTAL_SILENCE=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

# The interpreter may be that of a virtual environment, and then a second one made from it would not see its torch.
# So the wheels are laid into a folder that is searched first.
use_wheels() {
    local found=("$wheels"/*.whl)
    if [ ! -e "${found[0]}" ]; then
        echo "No wheels in $wheels: run 'make gpu-wheels' where there is a package index, and bring that folder here."
        return 1
    fi
    export PYTHONPATH=$paths:$site
    local names
    names=$(printf '%s\n' "${found[@]##*/}")
    if [ "$(cat "$site/.wheels" 2>/dev/null)" != "$names" ]; then
        echo "Installing ${#found[@]} wheels into build/gpu-site ..."
        rm -rf "$site"
        timeout -k 5 120 "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
            --disable-pip-version-check --target "$site" "${found[@]}" || { rm -rf "$site"; return 1; }
        printf '%s\n' "$names" > "$site/.wheels"
    fi
}

report() {
    "$python" -m gpu.report --workdir "$workdir" --stem "$stem" --seconds "$SECONDS" $small
}

# parts.tsv: module, limit, exit status, seconds; the last two are empty until the part has ended.
note_end() {
    awk -F '\t' -v OFS='\t' -v module="$1" -v status="$2" -v took="$3" \
        '$1 == module { print $1, $2, status, took; next } { print }' "$workdir/parts.tsv" > "$workdir/parts.new" &&
        mv "$workdir/parts.new" "$workdir/parts.tsv"
}

if ! unmet=$("$python" -m gpu.environment --check 2>&1); then
    printf 'The installed packages do not do:\n%s\n' "$unmet"
    use_wheels || echo "Going on with what is installed; parts that need more will fail and say so."
fi

for part in $parts; do
    printf '%s\t%s\t\t\n' "${part%:*}" "${part##*:}"
done > "$workdir/parts.tsv"
report || echo "The report cannot be written; the parts are run all the same." >&2

failed=0
for part in $parts; do
    module=${part%:*} limit=${part##*:}
    left=$((total_s - SECONDS))
    if [ "$left" -lt 5 ]; then
        echo "$module: not run, the whole run's $total_s s are over"
        failed=1
        continue
    fi
    if [ "$limit" -gt "$left" ]; then limit=$left; fi
    started=$(date +%s.%N)
    timeout -k 5 "$limit" "$python" -m "$module" --out "$workdir/$module.json" $small > "$workdir/$module.log" 2>&1 &
    child=$!
    wait $child
    status=$?
    child=
    took=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    echo "$module: status $status after $took s (limit $limit s)"
    if [ "$status" -ne 0 ]; then failed=1; fi
    note_end "$module" "$status" "$took"
    if [ -n "${OUT:-}" ]; then
        { echo "== $module: status $status"; cat "$workdir/$module.log"; } >> "$stem.log"
    fi
    report || failed=1
done

cat "$stem.md" || failed=1
echo "Written: $stem.md and $stem.json"
exit "$failed"
