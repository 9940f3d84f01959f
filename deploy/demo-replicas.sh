#!/usr/bin/env bash
# Shows two servers that share a store on PostgreSQL, behind HAProxy. One is killed while devices enroll, and no client
# notices. Everything is in a temporary directory, and listens on loopback or on Unix sockets.
set -euo pipefail

. "$(dirname "$0")/demo-common.sh"

declare -A port taken
for name in front http grpc-a http-a operations-a grpc-b http-b operations-b; do
  while p=$(port) && [ -n "${taken[$p]:-}" ]; do :; done
  port[$name]=$p taken[$p]=1
done
url=http://127.0.0.1:${port[http]}

cd "$work"
mkdir -p softhsm/tokens
printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$work/softhsm/tokens" >"$SOFTHSM2_CONF"

# --- PostgreSQL -----------------------------------------------------------------------------------------------------
database=$work/postgres
programs=$(find /usr/lib/postgresql/*/bin -name initdb 2>/dev/null | sort -V | tail -n 1) # Debian has them outside of PATH
programs=$(dirname "${programs:-$(command -v initdb)}")
mkdir -m 700 "$database"
as=() # initdb refuses root
if [ "$(id -u)" = 0 ]; then
  as=(runuser -u postgres --)
  chmod 711 "$work"
  chown postgres "$database"
fi
(cd "$database" && quiet "${as[@]}" "$programs/initdb" -D "$database/data" -A trust -U brevet -E UTF8 --no-locale)
(cd "$database" && exec "${as[@]}" "$programs/postgres" -D "$database/data" -k "$database" -h '') >postgres.log 2>&1 &
pids+=($!)
until_ok 20 "$programs/createdb" -h "$database" -U brevet brevet
umask 077
say 'PostgreSQL is running, with an empty database.' 'createdb brevet'

# --- Key ceremony ---------------------------------------------------------------------------------------------------
for pin in pin so-pin; do od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$pin"; done
quiet brevet hsm init --hsm-label demo --pin-file pin --so-pin-file so-pin
tok=(--hsm-label demo --pin-file pin)
quiet brevet ceremony root "${tok[@]}" --key-label root-g1 --subject 'CN=Demo Root G1,O=Brevet Demo' --out root.crt
quiet brevet ceremony intermediate request "${tok[@]}" --key-label issuing-g1 --subject 'CN=Demo Issuing G1,O=Brevet Demo' --out issuing.csr
quiet brevet ceremony sign "${tok[@]}" --key-label root-g1 --root root.crt --csr issuing.csr \
  --trust-domain demo.example --public-url "$url" --out issuing.crt
quiet brevet ceremony crl "${tok[@]}" --key-label root-g1 --root root.crt --out root.crl
for server in a b; do
  cat >"$server.yaml" <<EOF
trust_domain: demo.example
state_dir: $work/$server
server_names: [localhost, 127.0.0.1]
advertise_address: localhost:${port[front]}
public_url: $url
listen: {grpc: "127.0.0.1:${port[grpc-$server]}", http: "127.0.0.1:${port[http-$server]}", operations: "127.0.0.1:${port[operations-$server]}", https: ""}
store: {postgres: "host=$database user=brevet dbname=brevet", server: $server}
hsm: {label: demo, pin_file: $work/pin}
policy: $work/policy.yaml
EOF
done
short_policy >policy.yaml
quiet brevet ceremony install --config a.yaml --certificate issuing.crt --key-label issuing-g1 \
  --root root.crt --crl root.crl --operator alice --out alice.token
say 'The issuing CA is installed in the database, with its key in an HSM that both servers use.' \
  'brevet ceremony install --config a.yaml --certificate issuing.crt --key-label issuing-g1 --operator alice --out alice.token'

# --- Two servers and a load balancer ----------------------------------------------------------------------------------
declare -A running
start() { # SERVER
  brevet serve --config "$1.yaml" >"$1.log" 2>&1 &
  running[$1]=$!
  pids+=($!)
  until_ok 30 curl -fsS -o /dev/null "http://127.0.0.1:${port[operations-$1]}/readyz"
}
mkdir -m 700 b
start a
start b
cat >haproxy.cfg <<EOF
defaults
  mode tcp
  timeout connect 1s
  timeout client 1m
  timeout server 1m
  retries 3
  option redispatch
  default-server check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions
listen grpc
  bind 127.0.0.1:${port[front]}
  server a 127.0.0.1:${port[grpc-a]}
  server b 127.0.0.1:${port[grpc-b]}
listen http
  bind 127.0.0.1:${port[http]}
  server a 127.0.0.1:${port[http-a]}
  server b 127.0.0.1:${port[http-b]}
EOF
haproxy -db -f haproxy.cfg >haproxy.log 2>&1 &
pids+=($!)
until_ok 10 curl -fsS -o /dev/null "$(openssl x509 -in issuing.crt -noout -ext crlDistributionPoints | sed -n 's/^ *URI://p')"
say 'Two servers serve behind HAProxy, each with a certificate and a directory of its own.' \
  'brevet serve --config a.yaml & brevet serve --config b.yaml &'

# --- Devices ----------------------------------------------------------------------------------------------------------
quiet brevet login --token-file alice.token
devices=6
for n in $(seq "$devices"); do
  quiet brevet identity create "device/$n" --kind device --profile short
  quiet brevet token create "device/$n" --out "device$n.token"
  printf 'state_dir: %s\ntoken_file: %s\n' "$work/device$n" "$work/device$n.token" >"device$n.yaml"
  brevet-agent run --config "device$n.yaml" >"device$n.log" 2>&1 &
  pids+=($!)
done
serial() { openssl x509 -in "$1/current/cert.pem" -noout -serial | cut -d= -f2; }
for n in $(seq "$devices"); do until_ok 20 test -s "device$n/current/cert.pem"; done
say "$devices devices enrolled through the load balancer, with certificates that are valid for 15 s." 'brevet-agent run --config device1.yaml'

# --- One server is killed ---------------------------------------------------------------------------------------------
for n in $(seq "$devices"); do serial "device$n" >"device$n.first"; done
kill -9 "${running[a]}"
wait "${running[a]}" 2>/dev/null || true
say 'Server a is killed with SIGKILL.' 'kill -9 …'
renewed() { [ "$(serial "device$1")" != "$(cat "device$1.first")" ]; }
for n in $(seq "$devices"); do
  until_ok 30 renewed "$n"
  openssl x509 -in "device$n/current/cert.pem" -noout -checkend 0 >/dev/null || fail "the certificate of device/$n has expired"
done
say "All $devices devices have renewed since, at server b, and none of their certificates has expired." 'brevet-agent status --config device1.yaml'

web=$(serial device1)
quiet brevet cert revoke "$web" --reason cessationOfOperation
ocsp() { # PORT: prints the status of device/1 according to a server
  openssl ocsp -CAfile root.crt -issuer issuing.crt -serial "0x$web" -url "http://127.0.0.1:$1/ocsp" 2>>ocsp.log | sed -n "s/^0x$web: //p"
}
[ "$(ocsp "${port[http-b]}")" = revoked ] || fail "server b does not say revoked: $(cat ocsp.log)"
say "A certificate is revoked at server b, whose OCSP says so at once." "brevet cert revoke $web --reason cessationOfOperation"

# --- It comes back ----------------------------------------------------------------------------------------------------
start a
[ "$(ocsp "${port[http-a]}")" = revoked ] || fail "server a does not say revoked: $(cat ocsp.log)"
say 'Server a is started again. It has the revocation that it missed.' 'brevet serve --config a.yaml'

second=$(serial device2)
quiet brevet cert revoke "$second" --reason cessationOfOperation
web=$second
for server in a b; do
  says_revoked() { [ "$(ocsp "${port[http-$server]}")" = revoked ]; }
  until_ok 2 says_revoked
done
say 'A revocation at one server is known to the other within a second.' "brevet cert revoke $second --reason cessationOfOperation"

for server in a b; do
  grep -q 'level=ERROR' "$server.log" && fail "server $server has logged an error: $(grep 'level=ERROR' "$server.log" | head -n 3)"
done
quiet brevet log verify
say 'The log is one chain, whichever server wrote its entries, and verifies.' 'brevet log verify'

printf '\nEvery step succeeded, in %s s.\n' "$(($(date +%s) - begun))"
