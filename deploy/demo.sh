#!/usr/bin/env bash
# Shows Brevet once from the key ceremony to a revoked certificate, on a private SoftHSM token and a private SQLite file
# in a temporary directory. It prints for each step what happened and the command to type, and exits 0 only if every
# step succeeded.
set -euo pipefail

. "$(dirname "$0")/demo-common.sh"

grpc=$(port)
http=$(port)
while [ "$http" = "$grpc" ]; do http=$(port); done
operations=$(port)
while [ "$operations" = "$grpc" ] || [ "$operations" = "$http" ]; do operations=$(port); done
url=http://127.0.0.1:$http

cd "$work"
mkdir -p softhsm/tokens
printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$work/softhsm/tokens" >"$SOFTHSM2_CONF"
umask 077
for pin in pin so-pin; do od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$pin"; done

printf 'Brevet, from the key ceremony to a revoked certificate. Everything happens in %s.\n\n' "$work"

# --- Key ceremony ---------------------------------------------------------------------------------------------------
quiet brevet hsm init --hsm-label demo --pin-file pin --so-pin-file so-pin
say 'A private SoftHSM token is ready; keys made in it cannot leave it.' \
  'brevet hsm init --hsm-label demo --pin-file pin --so-pin-file so-pin'

tok=(--hsm-label demo --pin-file pin)
quiet brevet ceremony root "${tok[@]}" --key-label root-g1 --subject 'CN=Demo Root G1,O=Brevet Demo' --out root.crt
say 'The root key and its self-signed certificate are made, with a transcript to sign on paper.' \
  "brevet ceremony root --hsm-label demo --pin-file pin --key-label root-g1 --subject 'CN=Demo Root G1,O=Brevet Demo'"

quiet brevet ceremony intermediate request "${tok[@]}" --key-label issuing-g1 --subject 'CN=Demo Issuing G1,O=Brevet Demo' --out issuing.csr
quiet brevet ceremony sign "${tok[@]}" --key-label root-g1 --root root.crt --csr issuing.csr \
  --trust-domain demo.example --public-url "$url" --out issuing.crt
quiet brevet ceremony crl "${tok[@]}" --key-label root-g1 --root root.crt --out root.crl
say 'The root signed the certificate of the issuing CA (path length 0) and the root CRL.' \
  'brevet ceremony intermediate request … && brevet ceremony sign … && brevet ceremony crl …'

cat >brevet.yaml <<EOF
trust_domain: demo.example
state_dir: $work/ca
server_names: [localhost, 127.0.0.1]
public_url: $url
listen: {grpc: "127.0.0.1:$grpc", http: "127.0.0.1:$http", operations: "127.0.0.1:$operations", https: ""}
hsm: {label: demo, pin_file: $work/pin}
policy: $work/policy.yaml
EOF
short_policy >policy.yaml
quiet brevet ceremony install --config brevet.yaml --certificate issuing.crt --key-label issuing-g1 \
  --root root.crt --crl root.crl --operator alice --out alice.token
say 'The issuing CA is installed, and the first operator, alice, has a one-time token.' \
  'brevet ceremony install --config brevet.yaml --certificate issuing.crt --key-label issuing-g1 --operator alice --out alice.token'

brevet hsm show --config brevet.yaml >keys.txt 2>>commands.log || fail 'showing the keys in the HSM failed'
grep -q 'issuing-g1 .*CN=Demo Issuing G1.*(active)' keys.txt || fail "the HSM does not show the issuing key: $(cat keys.txt)"
say "The HSM holds $(($(wc -l <keys.txt) - 1)) keys, and shows which CA uses each." 'brevet hsm show --config brevet.yaml'

# --- Server and operator --------------------------------------------------------------------------------------------
brevet serve --config brevet.yaml >server.log 2>&1 &
pids+=($!)
root_crl=$(openssl x509 -in issuing.crt -noout -ext crlDistributionPoints | sed -n 's/^ *URI://p')
until_ok 15 curl -fsS -o /dev/null "http://127.0.0.1:$operations/readyz"
until_ok 15 curl -fsS -o /dev/null "$root_crl"
say 'The server is running: issuer, registration authority, validation authority and log in one process.' \
  'brevet serve --config brevet.yaml'

quiet brevet login --token-file alice.token
say 'alice enrolled for an operator certificate with the token.' 'brevet login --token-file alice.token'

# --- A device -------------------------------------------------------------------------------------------------------
quiet brevet identity create device/1 --kind device --profile short --label site=plant-7
quiet brevet token create device/1 --lifetime 15m --out device1.token
say 'A device is registered, and has a one-time enrollment token.' \
  'brevet identity create device/1 --kind device --profile short && brevet token create device/1 --out device1.token'

cat >agent.yaml <<EOF
state_dir: $work/device1
token_file: $work/device1.token
EOF
brevet-agent run --config agent.yaml >agent.log 2>&1 &
agent=$!
pids+=("$agent")
cert=$work/device1/current/cert.pem
until_ok 10 test -s "$cert"
serial() { openssl x509 -in "$cert" -noout -serial | cut -d= -f2; }
first=$(serial)
say "brevet-agent enrolled: certificate $first is valid for $(( $(date -d "$(openssl x509 -in "$cert" -noout -enddate | cut -d= -f2)" +%s) - $(date +%s) )) s." \
  'brevet-agent run --config agent.yaml'

renewal -credential "$work/device1" -certificates 3 >renewal.log 2>&1 &
renewal=$!
pids+=("$renewal")

# --- A workload -----------------------------------------------------------------------------------------------------
quiet brevet identity create web/1 --kind workload --profile workload --dns web.demo.example
quiet brevet token create web/1 --out web1.token
quiet workload --root root.crt --token-file web1.token --out web1
say "A workload got its certificate, for $(openssl x509 -in web1.crt -noout -ext subjectAltName | tail -n 1 | sed 's/^ *//'), with one plain gRPC call." \
  'EnrollmentService.Enroll(request_id, evidence, csr)   # examples/workload'

quiet openssl verify -CAfile root.crt -untrusted issuing.crt web1.crt
say "OpenSSL verifies it: $(openssl verify -CAfile root.crt -untrusted issuing.crt web1.crt)" \
  'openssl verify -CAfile root.crt -untrusted issuing.crt web1.crt'

ocsp() { # CERTIFICATE: prints its status according to openssl ocsp
  openssl ocsp -CAfile root.crt -issuer issuing.crt -cert "$1" -url "$(openssl x509 -in "$1" -noout -ocsp_uri)" 2>ocsp.log | grep "^$1:" | cut -d' ' -f2
}
[ "$(ocsp web1.crt)" = good ] || fail "openssl ocsp does not say good: $(cat ocsp.log)"
grep -q 'Response verify OK' ocsp.log || fail "openssl ocsp does not verify the response: $(cat ocsp.log)"
say 'By OCSP the certificate is good (checked with OpenSSL).' "openssl ocsp -CAfile root.crt -issuer issuing.crt -cert web1.crt -url $url/ocsp"

# --- A factory ------------------------------------------------------------------------------------------------------
quiet factory -operator "$XDG_STATE_HOME/brevet/operator" -path device/line1 -count 50 -out line1
quiet openssl verify -CAfile root.crt -untrusted issuing.crt line1/*.crt
say 'A factory registered 50 devices and got their certificates over one stream, as an operator. OpenSSL verifies them.' \
  'CertificateService.IssueCertificates(stream)   # examples/factory'

# --- Renewal --------------------------------------------------------------------------------------------------------
wait "$renewal" || fail "connections failed while the device renewed: $(cat renewal.log)"
last=$(serial)
[ "$last" != "$first" ] || fail 'the device did not renew'
say "The device renewed twice by itself, without interrupting a connection: $(cat renewal.log)" 'brevet-agent status --config agent.yaml'

# --- Revocation -----------------------------------------------------------------------------------------------------
web=$(openssl x509 -in web1.crt -noout -serial | cut -d= -f2)
quiet brevet cert revoke "$web" --reason keyCompromise
[ "$(ocsp web1.crt)" = revoked ] || fail "openssl ocsp does not say revoked: $(cat ocsp.log)"
say "The workload's certificate is revoked, and OCSP says so at once." "brevet cert revoke $web --reason keyCompromise"

crl_url=$(openssl x509 -in web1.crt -noout -ext crlDistributionPoints | sed -n 's/^ *URI://p')
fetch_crl() {
  curl -fsS -o issuing.crl.der "$crl_url" &&
    openssl crl -inform DER -in issuing.crl.der -out issuing.crl &&
    openssl crl -in issuing.crl -noout -text | grep -q "Serial Number: $web"
}
until_ok 10 fetch_crl
quiet openssl crl -in issuing.crl -CAfile issuing.crt -noout
say "The CRL, fetched over HTTP, lists the serial number." "curl -O $crl_url"

openssl x509 -in web1.crt -checkend 0 -noout >/dev/null || fail 'the certificate has expired, so this step cannot check its revocation'
set +e
verdict=$(openssl verify -crl_check -CAfile root.crt -untrusted issuing.crt -CRLfile issuing.crl web1.crt 2>&1)
set -e
grep -q 'error 23 at 0 depth lookup: certificate revoked' <<<"$verdict" || fail "openssl verify says: $verdict"
[ "$(grep -c '^error [0-9]' <<<"$verdict")" = 1 ] || fail "openssl verify says more: $verdict"
say "OpenSSL refuses the certificate only because it is revoked: error 23." \
  'openssl verify -crl_check -CAfile root.crt -untrusted issuing.crt -CRLfile issuing.crl web1.crt'

device=$(serial)
quiet brevet cert revoke "$device" --reason cessationOfOperation
agent_status() { brevet-agent status --config agent.yaml 2>&1 || true; } # it exits 1 unless the agent is healthy
refused() { grep -q 'certificate.revoked' <<<"$(agent_status)"; }
until_ok 20 refused
say "The device's certificate is revoked: its next renewal is refused, and the agent reports the reason ($(agent_status | sed -n 's/.*\(certificate [0-9A-F]* is revoked[^;]*\).*/\1/p' | head -n 1))." \
  'brevet-agent status --config agent.yaml'

quiet brevet revocation create --profile device --reason privilegeWithdrawn --comment 'the batch was stolen' --yes
brevet revocation list --output json >revocations.txt 2>>commands.log || fail 'listing the bulk revocations failed'
quiet brevet revocation watch "$(sed -n 's/^{"id":"\([^"]*\)".*/\1/p' revocations.txt)"
stolen=$(find line1 -name '*.crt' | sort | head -n 1)
[ "$(ocsp "$stolen")" = revoked ] || fail "openssl ocsp does not say revoked: $(cat ocsp.log)"
say 'The batch from the factory is revoked with one command, and OCSP says so at once.' \
  "brevet revocation create --profile device --reason privilegeWithdrawn --comment 'the batch was stolen'"

# --- The log --------------------------------------------------------------------------------------------------------
brevet log list >log.txt 2>>commands.log || fail 'reading the log failed'
for what in ca.installed identity.registered token.created token.bound certificate.issued certificate.revoked bulk_revocation.created crl.published request.refused; do
  grep -q "$what" log.txt || fail "the log has no entry $what"
done
grep -q "spiffe://demo.example/brevet/operator/alice *certificate.revoked" log.txt || fail 'the log has no revocation by alice'
quiet brevet log verify
say "The log records who did what, and its chain of $(($(wc -l <log.txt) - 1)) entries verifies. The entries of alice:" 'brevet log list && brevet log verify'
grep 'operator/alice  *\(identity\|token\|bulk_revocation\|certificate.revoked\)' log.txt | grep -v /line1/ | awk '{print "        " $2 "  " $4 "  " $6 "  " substr($7, 1, 40)}'

printf '\nEvery step succeeded, in %s s. Next: make run starts a CA like this one for you to try.\n' "$(($(date +%s) - begun))"
