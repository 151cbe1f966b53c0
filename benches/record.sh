#!/usr/bin/env bash
# Records one device: every kernel against its definition, then against the device's measured ceilings.
#
#   benches/record.sh [ADAPTER]      ADAPTER as `squisher --adapter` takes it; the default device without one
#
# Writes benches/record/<device>/<date>.{verify,bench-<elements>}.json. A device that fails `verify` is not timed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

adapter=("${@:+--adapter}" "$@")
[ $# -gt 0 ] || adapter=()
cargo build --release
squisher() { target/release/squisher "$@" "${adapter[@]}" --json --quiet; }

verdict=$(squisher verify)
device=$(sed -n 's/^ *"adapter": "\(.*\)",*$/\1/p' <<<"$verdict" | head -n 1 | tr -cs 'A-Za-z0-9.\n' '-' | sed 's/-*$//')
folder=benches/record/$device
mkdir -p "$folder"
record=$folder/$(date +%F)
printf '%s\n' "$verdict" >"$record.verify.json"
for elements in 65536 1048576 16777216 67108864; do
  squisher bench --size "$elements" >"$record.bench-$elements.json"
done
echo "recorded $record.*"
