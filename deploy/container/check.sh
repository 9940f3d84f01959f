#!/usr/bin/env bash
# Builds both images with buildah, on a Debian from debootstrap instead of a registry, and runs them: a ceremony and the
# server in one, the agent in the other, until it has a certificate. `make test-containers` calls it. It needs root, a
# minute or two, and Debian's mirror. It removes everything at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() { printf 'container check: %s\n' "$*" >&2; exit 1; }
say() { printf '%s\n' "$*"; }
[ "$(id -u)" = 0 ] || fail 'debootstrap and buildah need root: run it as root'
for tool in buildah debootstrap softhsm2-util curl pgrep; do
  command -v $tool >/dev/null || fail "$tool is not installed: apt-get install --no-install-recommends buildah debootstrap softhsm2 curl procps"
done

work=$(mktemp -d "${TMPDIR:-/tmp}/brevet-container.XXXXXX")
chmod 711 "$work" # the images' user must be able to reach the mounted directories
pids=()
# Background commands are started without a function, because kill would reach its shell instead of buildah.
buildah=(buildah --storage-driver vfs --root "$work/images" --runroot "$work/run")
images() { "${buildah[@]}" "$@"; }
cleanup() {
  status=$?
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  if [ "$status" -ne 0 ]; then tail -n 30 "$work"/*.log >&2 || true; fi
  images rm --all >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- Build ------------------------------------------------------------------------------------------------------------
debootstrap --variant=minbase bookworm "$work/debian" >"$work/debootstrap.log" || fail 'debootstrap'
base=$(images from scratch)
images copy --quiet "$base" "$work/debian" / >/dev/null
images commit --quiet "$base" localhost/base >/dev/null
for image in server agent; do
  images build-using-dockerfile --isolation chroot --build-arg BASE=localhost/base \
    --file "deploy/container/$image.Containerfile" --tag "$image" bin/ >"$work/build-$image.log" 2>&1 || fail "building $image"
  images inspect --type image "localhost/$image" >"$work/$image.json"
  grep -q '"User": "65532:65532"' "$work/$image.json" || fail "$image does not run as 65532"
done
server=$(images from localhost/server) agent=$(images from localhost/agent)
is() { [ "$2" = "$3" ] || fail "$1 is $3, want $2"; }
mounted=$(images mount "$agent")
is 'the content of the agent' 'usr/bin/brevet-agent' "$(cd "$mounted" && find . -type f -printf '%P\n' | grep -v '^\(etc\|run\|dev\|proc\|sys\)/')"
is 'the directory of the agent' '700 65532:65532' "$(stat -c '%a %u:%g' "$mounted/var/lib/brevet-agent")"
images umount "$agent" >/dev/null
# Remove the declared volumes: `buildah run` would mount its own over the given ones.
images config --volume /var/lib/brevet- "$server"
images config --volume /var/lib/brevet-agent- "$agent"
say 'Both images build and run as 65532, and the agent image contains only the agent.'

# --- Run --------------------------------------------------------------------------------------------------------------
port() {
  local p
  while p=$((20000 + RANDOM % 20000)); do
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then echo "$p"; return; fi
  done
}
grpc=$(port) http=$(port) operations=$(port)
mkdir "$work"/{etc,state,agent-etc,agent-state}
printf 'directories.tokendir = /var/lib/brevet/softhsm\nobjectstore.backend = file\nlog.level = ERROR\n' >"$work/etc/softhsm2.conf"
cat >"$work/etc/brevet.yaml" <<EOF
trust_domain: fleet.example
state_dir: /var/lib/brevet
server_names: [127.0.0.1]
public_url: http://127.0.0.1:$http
listen: {grpc: "127.0.0.1:$grpc", http: "127.0.0.1:$http", operations: "127.0.0.1:$operations", https: ""}
hsm: {label: issuing, pin_file: /etc/brevet/pin}
EOF
printf 'state_dir: /var/lib/brevet-agent\ntoken_file: /etc/brevet-agent/token\n' >"$work/agent-etc/agent.yaml"
mkdir "$work/state/softhsm"
for pin in pin so-pin; do head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/etc/$pin"; done
chmod 600 "$work"/etc/*pin
chmod 700 "$work"/*state
chown -R 65532:65532 "$work"/{etc,state,agent-etc,agent-state}
brevet=("${buildah[@]}" run --isolation chroot --volume "$work/etc:/etc/brevet:ro" --volume "$work/state:/var/lib/brevet" "$server" -- /usr/bin/brevet)
once() { "${brevet[@]}" "$@" >>"$work/commands.log" 2>&1 || fail "brevet $*"; }
token=(--hsm-label issuing --pin-file /etc/brevet/pin)
once hsm init --hsm-label issuing --pin-file /etc/brevet/pin --so-pin-file /etc/brevet/so-pin
once ceremony root "${token[@]}" --key-label root-g1 --subject 'CN=Fleet Root G1'
once ceremony intermediate request "${token[@]}" --key-label issuing-g1 --subject 'CN=Fleet Issuing G1'
once ceremony sign "${token[@]}" --key-label root-g1 --csr issuing.csr --trust-domain fleet.example --public-url "http://127.0.0.1:$http"
once ceremony crl "${token[@]}" --key-label root-g1
once ceremony install --config /etc/brevet/brevet.yaml --certificate issuing.crt --key-label issuing-g1 --root root.crt --operator alice --out alice.token
"${brevet[@]}" serve --config /etc/brevet/brevet.yaml >"$work/server.log" 2>&1 &
pids+=($!)
until_ok() { # COMMAND…: retries a command until it succeeds
  for _ in $(seq 100); do
    if "$@" >>"$work/commands.log" 2>&1; then return; fi
    sleep 0.2
  done
  fail "timed out waiting for: $*"
}
until_ok curl -fsS "http://127.0.0.1:$operations/readyz"
say 'The server is ready, with a SoftHSM token in its volume.'

operator() { XDG_STATE_HOME=$work/operator XDG_CONFIG_HOME=$work/operator bin/brevet "$@" >>"$work/commands.log" 2>&1 || fail "brevet $*"; }
operator login --token-file "$work/state/alice.token"
operator identity create device/1
operator token create device/1 --out "$work/device1.token"
install -m 0600 -o 65532 -g 65532 "$work/device1.token" "$work/agent-etc/token"
"${buildah[@]}" run --isolation chroot --volume "$work/agent-etc:/etc/brevet-agent:ro" --volume "$work/agent-state:/var/lib/brevet-agent" "$agent" -- \
  /usr/bin/brevet-agent run --config /etc/brevet-agent/agent.yaml >"$work/agent.log" 2>&1 &
pids+=($!)
until_ok test -s "$work/agent-state/current/cert.pem"
say "The agent has its certificate: $(openssl x509 -in "$work/agent-state/current/cert.pem" -noout -serial)"

# --- Stop -------------------------------------------------------------------------------------------------------------
# A container runtime sends the stop signal to the process inside. buildah does not pass a signal on, so send it
# directly.
innermost() {
  local child
  child=$(pgrep -P "$1" | head -n 1) || true
  if [ -n "$child" ]; then innermost "$child"; else echo "$1"; fi
}
for pid in "${pids[@]}"; do kill "$(innermost "$pid")"; done
for pid in "${pids[@]}"; do wait "$pid" || true; done
pids=()
for port in "$grpc" "$http" "$operations"; do
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then fail "a process still listens on $port"; fi
done
grep -q 'stopping: finishing what is in flight' "$work/server.log" || fail 'the server did not log that it was stopping'
say 'Both stop.'
