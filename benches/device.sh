#!/usr/bin/env bash
# All that is to be measured on a new device, once its driver is there:
#
#   benches/device.sh NAME [PYTHON]
#
# NAME is a part of the adapter's name (`squisher adapters`). Holds every kernel to its definition, and only then times them all and
# keeps the record under benches/record/. With PYTHON, one that has PyTorch, it also times PyTorch beside squisher: through CUDA where that
# is there, else on the processor.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=${1:?the name of an adapter, or a part of it: see squisher adapters}
python=${2:-}

cargo build --release
target/release/squisher verify --adapter "$name"
target/release/squisher bench --adapter "$name" --seconds 300 --device-memory 16GiB --record
if [ -n "$python" ]; then
  device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
  "$python" benches/peers/peers.py --adapter "$name" --device "$device"
fi
