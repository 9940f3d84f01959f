# Functions of the demonstrations. A script sources this file, which makes a temporary directory, $work. At the end of the
# script it stops the processes in $pids and removes the directory. It prints the logs if the script failed.
# shellcheck shell=bash

root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/brevet-demo.XXXXXX")
chmod 700 "$work"
pids=()
step=0
begun=$(date +%s)

# A demonstration reads and writes no configuration of the user.
export SOFTHSM2_CONF=$work/softhsm/softhsm2.conf
export XDG_STATE_HOME=$work/state XDG_CONFIG_HOME=$work/settings
export PATH=$bin:$PATH

cleanup() {
  status=$?
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  if [ "$status" -ne 0 ]; then
    printf '\nThe demonstration failed (exit %s). The last lines of its logs:\n' "$status" >&2
    for log in "$work"/*.log; do
      if [ -s "$log" ]; then printf '%s\n' "--- ${log##*/}" >&2; tail -n 15 "$log" >&2; fi
    done
  fi
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { # TEXT [COMMAND]: prints a step and its command
  step=$((step + 1))
  printf '%2d. %s\n' "$step" "$1"
  if [ $# -gt 1 ]; then printf '      $ %s\n' "$2"; fi
}
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }
quiet() { "$@" >>"$work/commands.log" 2>&1 || fail "failed: $*"; }

# until_ok SECONDS COMMAND…: retries a command until it succeeds.
until_ok() {
  local deadline=$(($(date +%s) + $1))
  shift
  until "$@" >>"$work/commands.log" 2>&1; do
    [ "$(date +%s)" -lt "$deadline" ] || fail "timed out waiting for: $*"
    sleep 0.2
  done
}

# short_policy prints a policy with the profile short, and with tokens as the only evidence.
short_policy() {
  cat <<'EOF'
profiles:
  short: # valid for well under a minute, so that renewals can be watched
    kinds: [device]
    lifetime: 15s
    max_lifetime: 30s
    backdate: 5s
    keys: [P-256]
    key_usage: [digitalSignature]
    extended_key_usage: [clientAuth, serverAuth]
    crl_url: "{public_url}/crl/{issuer}.crl"
    ocsp_url: "{public_url}/ocsp"
    ca_url: "{public_url}/ca/{issuer}.cer"
rules:
  - name: tokens
    evidence: [token]
EOF
}

# Free ports, so that the demonstration does not conflict with a running server.
port() { # prints a free port
  local p
  while p=$((20000 + RANDOM % 20000)); do
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then echo "$p"; return; fi
  done
}
