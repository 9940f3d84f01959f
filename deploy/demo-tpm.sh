#!/usr/bin/env bash
# Shows how a machine enrolls with its TPM 2.0: without a secret, because the CA knows the TPM's endorsement key. The TPM
# is replaced by a spare, the CA refuses it, and an operator ties the identity to it. The TPM is swtpm, an emulator. The
# script prints for each step what happened and the command to type, and exits 0 only if every step succeeded.
set -euo pipefail

. "$(dirname "$0")/demo-common.sh"

grpc=$(port)
http=$(port)
while [ "$http" = "$grpc" ]; do http=$(port); done

cd "$work"
mkdir -p softhsm/tokens
printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$work/softhsm/tokens" >"$SOFTHSM2_CONF"
umask 077
socket=$work/tpm
export TPM2TOOLS_TCTI=swtpm:path=$socket TPM2OPENSSL_TCTI=swtpm:path=$socket

printf 'Brevet, with the TPM 2.0 of a machine. Everything happens in %s.\n\n' "$work"

# power_on STATE: starts the TPM with the state in a directory. An empty directory becomes a new TPM.
power_on() {
  mkdir -p "$1"
  swtpm socket --tpm2 --tpmstate "dir=$1" --server "type=unixio,path=$socket" --ctrl "type=unixio,path=$socket.ctrl" \
    --flags not-need-init,startup-clear >>tpm.log 2>&1 &
  tpm=$!
  pids+=("$tpm")
  until_ok 10 tpm2_getcap properties-fixed
}
power_off() {
  kill "$tpm"
  wait "$tpm" || true
  rm -f "$socket" "$socket.ctrl"
}

# --- A machine with a TPM, and a CA ---------------------------------------------------------------------------------
power_on board-1
say 'A machine has a TPM 2.0. The endorsement key in it comes from a seed of the manufacturer, and cannot leave the TPM.' \
  'swtpm socket --tpm2 --tpmstate dir=board-1 --server type=unixio,path=tpm …'

# The ceremony, which make demo explains.
for pin in pin so-pin; do od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$pin"; done
key=(--hsm-label demo --pin-file pin --key-label)
quiet brevet hsm init --hsm-label demo --pin-file pin --so-pin-file so-pin
quiet brevet ceremony root "${key[@]}" root-g1 --subject 'CN=Demo Root G1,O=Brevet Demo'
quiet brevet ceremony intermediate request "${key[@]}" issuing-g1 --subject 'CN=Demo Issuing G1,O=Brevet Demo'
quiet brevet ceremony sign "${key[@]}" root-g1 --csr issuing.csr --trust-domain demo.example --public-url "http://127.0.0.1:$http"
quiet brevet ceremony crl "${key[@]}" root-g1
cat >brevet.yaml <<END
trust_domain: demo.example
state_dir: $work/ca
server_names: [localhost]
public_url: http://127.0.0.1:$http
listen: {grpc: "127.0.0.1:$grpc", http: "127.0.0.1:$http", operations: "", https: ""}
hsm: {label: demo, pin_file: $work/pin}
END
quiet brevet ceremony install --config brevet.yaml --key-label issuing-g1 --operator alice --out alice.token
brevet serve --config brevet.yaml >server.log 2>&1 &
pids+=($!)
until_ok 30 curl -fsS -o /dev/null "$(openssl x509 -in issuing.crt -noout -ext crlDistributionPoints | sed -n 's/^ *URI://p')"
quiet brevet login --token-file alice.token
say 'A CA is running, with the operator alice.' 'brevet serve --config brevet.yaml && brevet login --token-file alice.token'

cat >agent.yaml <<END
state_dir: $work/device
server: localhost:$grpc
key: {tpm: $socket}
attestation: true
trust_domain: demo.example
root_fingerprint: $(openssl x509 -in root.crt -noout -fingerprint -sha256 | cut -d= -f2)
END
first=$(brevet-agent evidence --config agent.yaml)
say "The agent of the machine shows which TPM it has: $first" 'brevet-agent evidence --config agent.yaml'

quiet tpm2_createek -c ek.ctx -G rsa -f pem -u ek.pem
quiet tpm2_flushcontext --transient-object
hash=$(openssl pkey -pubin -in ek.pem -outform DER | sha256sum | cut -d' ' -f1)
[ "tpm:$hash" = "$first" ] || fail "tpm2-tools and OpenSSL find another endorsement key: $hash"
say 'It is the hash of the endorsement key: tpm2-tools and OpenSSL find the same one.' \
  'tpm2_createek -c ek.ctx -G rsa -f pem -u ek.pem && openssl pkey -pubin -in ek.pem -outform DER | sha256sum'

# --- The allow list -------------------------------------------------------------------------------------------------
power_off
power_on board-2
second=$(brevet-agent evidence --config agent.yaml)
[ "$second" != "$first" ] || fail 'both boards have the same endorsement key'
power_off
power_on board-1
say "There is a spare board, with another TPM: $second" 'brevet-agent evidence --config agent.yaml'

cat >policy.yaml <<END
profiles:
  short: # valid for well under a minute, so that renewal and expiry can be watched
    kinds: [device]
    lifetime: 20s
    max_lifetime: 1m
    backdate: 5s
    keys: [P-256]
    key_usage: [digitalSignature]
    extended_key_usage: [clientAuth, serverAuth]
    crl_url: "{public_url}/crl/{issuer}.crl"
    ocsp_url: "{public_url}/ocsp"
    ca_url: "{public_url}/ca/{issuer}.cer"
rules:
  - name: press-7
    evidence: [tpm]
    when: tpm.ek in ["${first#tpm:}", "${second#tpm:}"] # the boards of this plant
    identity: device/press-7
    hardware_key: true # the key cannot be copied
    replace: true      # a machine that has lost its certificate enrolls again
  - name: tokens
    evidence: [token]
END
quiet brevet policy check policy.yaml
quiet brevet policy apply policy.yaml --comment 'press 7 enrolls with its TPM'
quiet brevet identity create device/press-7 --profile short --label site=plant-7 --evidence "$first"
say 'The policy lets both boards enroll as press-7, but press-7 is registered with the hash of its TPM: no other TPM can.' \
  "brevet policy apply policy.yaml && brevet identity create device/press-7 --profile short --evidence ${first:0:12}…"
sed 's/^/        /' policy.yaml

# --- Enrollment without a secret ------------------------------------------------------------------------------------
run_agent() {
  brevet-agent run --config agent.yaml >>agent.log 2>&1 &
  agent=$!
  pids+=("$agent")
}
stop_agent() {
  kill "$agent"
  wait "$agent" || true
}
cert=device/current/cert.pem
serial() { openssl x509 -in "$cert" -noout -serial 2>/dev/null | cut -d= -f2; }
newer_than() { test -s "$cert" && [ "$(serial)" != "$1" ]; } # SERIAL: reports whether the machine has another certificate

run_agent
until_ok 30 newer_than none
enrolled=$(serial)
cp -r "$(readlink -f device/current)" enrolled
say "The machine enrolled with its TPM, and without any secret: certificate $enrolled for $(openssl x509 -in "$cert" -noout -ext subjectAltName | sed -n 's/^ *URI://p')." \
  'brevet-agent run --config agent.yaml'

head -n 1 enrolled/key.pem | grep -q 'TSS2 PRIVATE KEY' || fail "key.pem is not a key in a TPM: $(head -n 1 enrolled/key.pem)"
printf 'press 7' >message
quiet openssl dgst -provider default -provider tpm2 -propquery '?tpm2.signature=yes' -sha256 -sign enrolled/key.pem -out signature message
openssl x509 -in enrolled/cert.pem -noout -pubkey >press-7.pub
quiet openssl dgst -sha256 -verify press-7.pub -signature signature message
say 'OpenSSL signs with the key in the TPM, through key.pem, and verifies the signature with the certificate.' \
  "openssl dgst -provider default -provider tpm2 -propquery '?tpm2.signature=yes' -sha256 -sign key.pem -out signature message"

until_ok 40 newer_than "$enrolled"
renewed=$(serial)
brevet cert list --lineage "$enrolled" >lineage.txt 2>>commands.log || fail 'listing the lineage of the certificate failed'
grep -q "$renewed" lineage.txt || fail "certificate $renewed was not renewed from $enrolled: $(cat lineage.txt)"
say "The machine renewed by itself, with a new key in the TPM: certificate $renewed." 'brevet-agent status --config agent.yaml'

# --- Another TPM ----------------------------------------------------------------------------------------------------
stop_agent
power_off
power_on board-2
run_agent
agent_status() { brevet-agent status --config agent.yaml 2>&1 || true; } # it exits 1 unless the agent is healthy
lost() { grep -q 'made in another TPM' <<<"$(agent_status)"; }
until_ok 60 lost
say "The board of the machine is replaced with the spare, and so is the TPM on it. The key of the certificate does not work there: $(agent_status | sed -n 's/^problem .*\(the TPM could not load the key\).*: \(the key was made in another TPM[^;"]*\).*/\1: \2/p')" \
  'brevet-agent status --config agent.yaml'

until_ok 60 grep -q 'identity.evidence_conflict' agent.log
if wait "$agent"; then fail 'the agent ended as if it were enrolled'; fi
[ "$(serial)" = "$renewed" ] || fail 'the machine has a certificate for another TPM'
say "When the certificate has expired, the agent enrolls with the new TPM, and the CA refuses it: $(sed -n 's/^brevet-agent: .*refuses: //p' agent.log | tail -n 1)" \
  'brevet-agent run --config agent.yaml'

in_log() { brevet log list >log.txt && grep -q "$1" log.txt; }
until_ok 15 in_log 'request.refused.*identity.evidence_conflict'
say 'The log of the CA records the refusal, with the TPM that was refused:' 'brevet log list'
grep 'request.refused.*identity.evidence_conflict' log.txt | tail -n 1 | awk '{print "        " $2 "  " $3 "  " $4 "  " $6}'

# --- An operator rebinds the identity -------------------------------------------------------------------------------
quiet brevet identity update device/press-7 --evidence "$second"
say 'An operator, who knows that the board was replaced, ties press-7 to the new TPM.' \
  "brevet identity update device/press-7 --evidence ${second:0:12}…"

run_agent
until_ok 30 newer_than "$renewed"
say "The machine enrolled with its new TPM: certificate $(serial)." 'brevet-agent run --config agent.yaml'

stop_agent
power_off
power_on board-1
sed "s|^state_dir: .*|state_dir: $work/old-board|" agent.yaml >old-board.yaml
if brevet-agent run --config old-board.yaml >old-board.log 2>&1; then fail 'the old TPM enrolled'; fi
grep -q 'identity.evidence_conflict' old-board.log || fail 'the old TPM was not refused'
say 'The old board is refused from now on, wherever it is.' 'brevet-agent run --config old-board.yaml'

quiet brevet log verify
in_log certificate.issued
for what in policy.applied identity.registered identity.updated request.refused; do
  grep -q "$what" log.txt || fail "the log has no entry $what"
done
say "The log records who did what, and its chain of $(($(wc -l <log.txt) - 1)) entries verifies." 'brevet log list && brevet log verify'

printf '\nEvery step succeeded, in %s s. On a machine with a TPM, key.tpm is /dev/tpmrm0: see docs/operations.md.\n' "$(($(date +%s) - begun))"
