#!/usr/bin/env bash
# Prints what brevet-agent needs on a device: the size of its binary for each architecture, its memory while it waits
# between renewals, and its largest packages. `make sizes` builds bin/ and calls it.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GO=${GO:-go}
tags=${AGENT_TAGS:?set it to the build tags of the agent: make sizes does}
work=$(mktemp -d "${TMPDIR:-/tmp}/brevet-sizes.XXXXXX")
chmod 700 "$work"
pids=()

cleanup() {
  status=$?
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  if [ "$status" -ne 0 ]; then tail -n 20 "$work"/*.log >&2 2>/dev/null || true; fi
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() { printf 'sizes: %s\n' "$*" >&2; exit 1; }

agent() { # ARCHITECTURE OUTPUT LDFLAGS
  CGO_ENABLED=0 GOOS=linux GOARCH=$1 "$GO" build -trimpath -buildvcs=false -tags "$tags" -ldflags "$3" -o "$2" ./cmd/brevet-agent
}

sizes() {
  printf '%-16s %10s %12s\n' 'brevet-agent for' MiB 'gzip -9, MiB'
  for arch in amd64 arm64 arm riscv64; do
    agent "$arch" "$work/$arch" '-s -w'
    gzip -9 <"$work/$arch" >"$work/$arch.gz"
    awk -v arch="linux/$arch" -v plain="$(stat -c %s "$work/$arch")" -v packed="$(stat -c %s "$work/$arch.gz")" \
      'BEGIN { printf "%-16s %10.2f %12.2f\n", arch, plain / 1048576, packed / 1048576 }'
  done
}

port() { # prints a free port
  local p
  while p=$((20000 + RANDOM % 20000)); do
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then echo "$p"; return; fi
  done
}

# eventually COMMAND…: retries a command for half a minute until it succeeds.
eventually() {
  for _ in $(seq 150); do
    if "$@" >>"$work/commands.log" 2>&1; then return; fi
    sleep 0.2
  done
  fail "timed out waiting for: $*"
}

# memory runs the agent with a development CA, and prints its memory while it is idle with a certificate.
memory() {
  export XDG_STATE_HOME=$work/state XDG_CONFIG_HOME=$work/settings
  local held=$work/device
  bin/brevet dev --grpc "127.0.0.1:$(port)" --http "127.0.0.1:$(port)" --https "" >"$work/server.log" 2>&1 &
  pids+=($!)
  eventually bin/brevet identity create device/1
  bin/brevet token create device/1 --out "$work/token" >>"$work/commands.log"
  "$work/amd64" run --directory "$held" --token-file "$work/token" >"$work/agent.log" 2>&1 &
  local agent=$!
  pids+=("$agent")
  eventually "$work/amd64" status --directory "$held"
  sleep 10 # the memory used by the enrollment is returned to the system
  awk -v pages="$(awk '/^(RssAnon|RssFile):/ { printf "%s%.1f MiB %s", sep, $2 / 1024, $1 == "RssAnon:" ? "its own" : "of files"; sep = ", " }' "/proc/$agent/status")" \
    '/^VmRSS:/ { rss = $2 } /^VmHWM:/ { most = $2 }
     END { printf "resident while it waits: %.1f MiB (%s); at most so far: %.1f MiB\n", rss / 1024, pages, most / 1024 }' "/proc/$agent/status"
}

# packages prints the parts of the binary, and the largest tenth of its packages by their code and variables. Types,
# strings and line tables have no symbol of their package, so they are not counted there.
packages() {
  agent amd64 "$work/whole" ''
  "$GO" tool nm -size -sort address "$work/whole" >"$work/symbols"
  awk -v whole="$(stat -c %s "$work/amd64")" '
    $NF ~ /^runtime\.(e?text|e?rodata|e?pclntab|noptrdata|edata)$/ { at[substr($NF, 9)] = $1 }
    function number(hex,  n, i) {
      for (i = 1; i <= length(hex); i++) n = 16 * n + index("0123456789abcdef", substr(hex, i, 1)) - 1
      return n
    }
    function row(name, size) { printf "%7d KiB %5.1f%%  %s\n", size / 1024, 100 * size / whole, name; rest -= size }
    END {
      rest = whole
      print "of which, for linux/amd64:"
      row("code", number(at["etext"]) - number(at["text"]))
      row("tables from addresses to functions and lines", number(at["epclntab"]) - number(at["pclntab"]))
      row("types, strings and constants", number(at["erodata"]) - number(at["rodata"]))
      row("variables", number(at["edata"]) - number(at["noptrdata"]))
      row("the rest", rest)
    }' "$work/symbols"
  awk '
    function package(symbol,  at, path) {
      sub(/[[(].*/, "", symbol)
      while (at = index(symbol, "/")) { path = path substr(symbol, 1, at); symbol = substr(symbol, at + 1) }
      sub(/\..*/, "", symbol)
      gsub(/%2e/, ".", symbol)
      return path symbol
    }
    $NF == "runtime.bss" { exit } # the rest is not in the file
    $2 > 0 && $4 ~ /^[^:]*\./ { held[package($4)] += $2; all += $2 }
    END { for (name in held) printf "%d %.1f %s\n", held[name] / 1024, 100 * held[name] / all, name }' "$work/symbols" |
    sort -k1,1nr >"$work/packages"
  local count
  count=$(wc -l <"$work/packages")
  printf '\nthe largest tenth of its %d packages, in code and variables:\n' "$count"
  awk -v most="$(((count + 9) / 10))" 'NR <= most { printf "%7d KiB %5.1f%%  %s\n", $1, $2, $3; sum += $2 }
    END { printf "%18.1f%%  together\n", sum }' "$work/packages"
}

sizes
echo
memory
echo
packages
