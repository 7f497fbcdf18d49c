#!/bin/bash
# Build the libraries of the null GPU against the torch of the active python:  ./build.sh [BUILD_DIR]
# Needs gcc and nm (binutils). Headers come from torch's nvidia wheels and from nvidia-cuda-crt, which torch does not
# install: pip install nvidia-cuda-crt, of the version of nvidia-cuda-runtime.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${1:-$here/build}
python=${PYTHON:-python}
mkdir -p "$build/driver" "$build/obj"
build=$(cd "$build" && pwd)

torch_lib=$("$python" -c 'import importlib.util, os
print(os.path.join(os.path.dirname(importlib.util.find_spec("torch").origin), "lib"))')

# Include folders of the `nvidia` namespace package, one a line.
include_dirs() {
    "$python" -c '
import importlib.util, pathlib
spec = importlib.util.find_spec("nvidia")
for place in spec.submodule_search_locations if spec else ():
    for folder in sorted(pathlib.Path(place).glob("*/include")):
        print(folder)
'
}

# The path of the header $1 in them; nothing where it is missing.
header() {
    local folder
    for folder in "${dirs[@]}"; do
        if [ -e "$folder/$1" ]; then
            echo "$folder/$1"
            return
        fi
    done
}

for tool in gcc nm; do
    command -v "$tool" > /dev/null || { echo "no $tool" >&2; exit 1; }
done
mapfile -t dirs < <(include_dirs)
for name in cuda_runtime_api.h cuda.h cublasLt.h nccl.h crt/host_defines.h; do
    if [ -z "$(header "$name")" ]; then
        echo "no $name in the nvidia packages of $python: needs a CUDA build of torch, and nvidia-cuda-crt" >&2
        exit 1
    fi
done

compile=(gcc -O1 -g -fPIC -Wall -Wno-deprecated-declarations -fvisibility=default "${dirs[@]/#/-I}")
for source in nullcuda nullblas nullnccl nullcu; do
    "${compile[@]}" -c "$here/$source.c" -o "$build/obj/$source.o"
done

defined() { nm --defined-only --extern-only "$1" | awk '{print $3}' | sort -u; }

# Names beginning with $1 that torch's libraries import.
imported() {
    nm -D --undefined-only "$torch_lib"/lib{torch,c10}*.so 2>/dev/null |
        awk 'NF == 2 {sub(/@.*/, "", $2); print $2}' | grep "^$1[A-Z]" | sort -u
}

# Functions of the driver, with the suffixed names that cuda.h maps them to.
declared() {
    local file
    file=$(header cuda.h)
    { grep -oE '\bcu[A-Z][A-Za-z0-9_]* *\(' "$file" | tr -d ' ('
      grep -E '# *define +cu[A-Z]' "$file" | grep -oE '\bcu[A-Z][A-Za-z0-9_]*'; } | sort -u
}

# A function that succeeds for each name of $1 that the object $2 does not define.
stubs() {
    comm -23 "$1" <(defined "$2") | sed 's/.*/int &(void) { return 0; }/'
}

imported cublas > "$build/obj/cublas.names"
imported nccl > "$build/obj/nccl.names"
declared > "$build/obj/cuda.names"
{ echo 'void nullblas_call(void);'
  stubs "$build/obj/cublas.names" "$build/obj/nullblas.o" |
      sed -E '/gemm|Gemm|gemv|dot|Dot|LtMatmul\(/s/\{ /{ nullblas_call(); /'; } > "$build/obj/stubs_cublas.c"
stubs "$build/obj/nccl.names" "$build/obj/nullnccl.o" > "$build/obj/stubs_nccl.c"
stubs "$build/obj/cuda.names" "$build/obj/nullcu.o" > "$build/obj/stubs_cu.c"

link=(gcc -shared -fPIC -w -O1 -fno-builtin)
"${link[@]}" "$build/obj/nullcuda.o" -o "$build/libnullcuda.so"
"${link[@]}" "$build/obj/nullblas.o" "$build/obj/stubs_cublas.c" -o "$build/libnullblas.so"
"${link[@]}" "$build/obj/nullnccl.o" "$build/obj/stubs_nccl.c" -o "$build/libnullnccl.so"
# In a folder of its own: a libcuda.so.1 is found by its name.
"${link[@]}" "$build/obj/nullcu.o" "$build/obj/stubs_cu.c" -Wl,-soname,libcuda.so.1 -o "$build/driver/libcuda.so.1"
echo "built $build: $(grep -c '^int' "$build/obj/stubs_cublas.c") cublas," \
    "$(grep -c '^int' "$build/obj/stubs_nccl.c") nccl and $(grep -c '^int' "$build/obj/stubs_cu.c") driver stubs"
