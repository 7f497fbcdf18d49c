#!/bin/bash
# Run a command on the null GPU:  ./run.sh python ...
# NULL_GPU_BUILD: folder of its libraries (default: build/ beside this script), which are built where they are missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${NULL_GPU_BUILD:-$here/build}
[ -e "$build/driver/libcuda.so.1" ] || "$here/build.sh" "$build" >&2
build=$(cd "$build" && pwd)
# Names, not paths: LD_PRELOAD knows no quoting, and names are looked up along LD_LIBRARY_PATH.
export LD_LIBRARY_PATH="$build:$build/driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LD_PRELOAD=libnullcuda.so:libnullblas.so:libnullnccl.so
export OMP_NUM_THREADS=1
# Triton builds its launcher against this libcuda and keeps it, inductor keeps what it tuned on a device that takes no
# time: never in the user's own caches.
export TRITON_CACHE_DIR="$build/triton" TORCHINDUCTOR_CACHE_DIR="$build/inductor"
exec "$@"
