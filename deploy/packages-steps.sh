#!/usr/bin/env bash
# Tests the packages from installation to purge, on a system in which systemd is process 1. It changes that system, so
# deploy/packages-test.sh runs it in a copy.
set -euo pipefail
cd /packages

begun=$(date +%s)
say() { printf '%3d s  %s\n' "$(($(date +%s) - begun))" "$*"; }
fail() { printf 'packages-steps: %s\n' "$*" >&2; exit 1; }
quiet() { "$@" >commands.log 2>&1 || { cat commands.log >&2; fail "failed: $*"; }; }
is() { # WHAT WANT GOT
  [ "$2" = "$3" ] || fail "$1 is $3, want $2"
}
mode() { is "$1" "$2" "$(stat -c '%a %U:%G' "$1")"; }
state() { # UNIT WANT: checks the output of systemctl is-active
  is "$1" "$2" "$(systemctl is-active "$1" || true)"
}
# Some systems do not install documentation; the test needs it.
dpkg() { command dpkg --path-include='/usr/share/*' "$@"; }
as_brevet() { runuser -u brevet -- env SOFTHSM2_CONF=/etc/brevet/softhsm2.conf "$@"; }

# --- Install ----------------------------------------------------------------------------------------------------------
# First install an older version with another configuration file, to test the upgrade later.
mkdir old
for name in brevet brevet-agent; do
  quiet dpkg-deb --raw-extract "$name"_*.deb "old/$name"
  sed -i 's/^Version: .*/Version: 0~0/' "old/$name/DEBIAN/control"
done
echo '# An older one.' >>old/brevet/etc/brevet/softhsm2.conf
(cd old/brevet && md5sum etc/brevet/softhsm2.conf >>DEBIAN/md5sums.new && grep -v softhsm2.conf DEBIAN/md5sums >>DEBIAN/md5sums.new && mv DEBIAN/md5sums.new DEBIAN/md5sums)
for name in brevet brevet-agent; do quiet dpkg-deb --root-owner-group --build "old/$name" "old/$name.deb"; done
quiet dpkg --install old/brevet.deb old/brevet-agent.deb
for name in brevet brevet-agent; do
  state "$name" inactive
  is "$name" disabled "$(systemctl is-enabled "$name" || true)"
  mode "/etc/$name" '755 root:root'
  case $name in
  brevet) mode "/var/lib/$name" "700 $name:$name" ;;
  *) mode "/var/lib/$name" "711 $name:$name" ;; # other users may traverse it to read certificates
  esac
  mode "/usr/bin/$name" '755 root:root'
  is "the shell of $name" /usr/sbin/nologin "$(getent passwd "$name" | cut -d: -f7)"
  is "the home of $name" "/var/lib/$name" "$(getent passwd "$name" | cut -d: -f6)"
  [ -s "/usr/share/doc/$name/copyright" ] || fail "$name has no copyright file"
  is "the version of $name" "$name" "$("$name" version | cut -d' ' -f1)"
done
is 'the files that differ from the packages' '' "$(dpkg --verify brevet brevet-agent)"
say 'Installed: accounts and directories exist, and no service is started or enabled.'

# Without configuration each service must log what is missing. Without a PIN the server must not be restarted.
refuses() { # UNIT TEXT: checks that the unit does not start and its journal contains the text
  if systemctl start "$1" 2>/dev/null; then fail "$1 starts without configuration"; fi
  journalctl --sync
  journalctl --no-pager --quiet --unit="$1" | grep -q -- "$2" || fail "the journal does not say why $1 does not start"
}
refuses brevet status=243/CREDENTIALS
is 'the server without a PIN' failed "$(systemctl show brevet --property SubState --value)"
install -m 0600 /dev/null /etc/brevet/pin
refuses brevet 'no configuration: open /etc/brevet/brevet.yaml'
refuses brevet-agent '/etc/brevet-agent/agent.yaml: no such file'
quiet systemctl stop brevet brevet-agent
say 'Started without configuration, each service logs what is missing.'

# --- Manual and completions -------------------------------------------------------------------------------------------
for page in brevet brevet-ceremony-intermediate-request brevet-agent brevet-agent-run brevet-bench-issue; do
  zcat "/usr/share/man/man1/$page.1.gz" | grep -q "^$page - " || fail "the manual page $page has no name"
done
completes() { # LINE WORD: checks that completing the line offers the word
  (
    set +eu
    . /usr/share/bash-completion/bash_completion
    read -ra COMP_WORDS <<<"$1"
    case $1 in *' ') COMP_WORDS+=('') ;; esac
    COMP_LINE=$1 COMP_POINT=${#1} COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=63
    . "/usr/share/bash-completion/completions/${COMP_WORDS[0]}"
    "__start_${COMP_WORDS[0]}"
    printf '%s\n' "${COMPREPLY[@]}"
  ) >commands.log 2>&1
  grep -q -- "^$2\b" commands.log || fail "the completion of '$1' offers: $(cat commands.log)"
}
completes 'brevet cere' ceremony
completes 'brevet identity ' create
completes 'brevet identity create device/1 --ki' --kind
completes 'brevet-agent st' status
completes 'brevet-agent run --to' --token-file
completes 'brevet-agent status --output ' json
completes 'brevet revocation create --lab' --label
completes 'brevet-bench oc' ocsp
for shell in zsh fish; do # if installed: the scripts must load and complete
  command -v "$shell" >/dev/null || continue
  case $shell in
    zsh) zsh -fc 'fpath=(/usr/share/zsh/vendor-completions $fpath); autoload -Uz compinit; compinit -u -D
      [[ $_comps[brevet] = _brevet && $_comps[brevet-agent] = _brevet-agent ]] && autoload +X _brevet _brevet-agent' >commands.log 2>&1 ;;
    fish) XDG_CONFIG_HOME=/tmp/fish fish -c "complete -C 'brevet cere'; complete -C 'brevet-agent st'" >commands.log 2>&1 &&
      grep -q ^ceremony commands.log && grep -q ^status commands.log ;;
  esac || fail "$shell does not complete: $(cat commands.log)"
done
say 'The manual pages exist, and the shell completes commands and flags.'

# --- Configure, and start ---------------------------------------------------------------------------------------------
cat >/etc/brevet/brevet.yaml <<'EOF'
trust_domain: fleet.example
state_dir: /var/lib/brevet
server_names: [localhost, 127.0.0.1]
public_url: http://127.0.0.1:7080
hsm: {label: issuing}
EOF
for pin in pin so-pin; do head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$pin"; done
install -m 0600 pin /etc/brevet/pin
install -d -m 0700 -o brevet -g brevet /var/lib/brevet/softhsm /var/lib/brevet/ceremony
install -m 0600 -o brevet -g brevet pin so-pin /var/lib/brevet/ceremony/
(
  cd /var/lib/brevet/ceremony
  token=(--hsm-label issuing --pin-file pin)
  quiet as_brevet brevet hsm init --hsm-label issuing --pin-file pin --so-pin-file so-pin
  quiet as_brevet brevet ceremony root "${token[@]}" --key-label root-g1 --subject 'CN=Fleet Root G1'
  quiet as_brevet brevet ceremony intermediate request "${token[@]}" --key-label issuing-g1 --subject 'CN=Fleet Issuing G1'
  quiet as_brevet brevet ceremony sign "${token[@]}" --key-label root-g1 --csr issuing.csr --trust-domain fleet.example --public-url http://127.0.0.1:7080
  quiet as_brevet brevet ceremony crl "${token[@]}" --key-label root-g1
  # There is no terminal to prompt for the PIN, so pass it as a credential, as systemd does.
  quiet as_brevet env CREDENTIALS_DIRECTORY="$PWD" brevet ceremony install --config /etc/brevet/brevet.yaml \
    --certificate issuing.crt --key-label issuing-g1 --root root.crt --crl root.crl --operator alice --out alice.token
  rm pin so-pin
)
quiet systemctl enable --now brevet
state brevet active
quiet curl -fsS http://127.0.0.1:7090/readyz
say 'The server runs, with its PIN as a systemd credential.'

quiet brevet login --token-file /var/lib/brevet/ceremony/alice.token
quiet brevet identity create device/1
quiet brevet token create device/1 --out device1.token
install -m 0640 -g brevet-agent device1.token /etc/brevet-agent/token
cp /usr/share/doc/brevet-agent/examples/agent.yaml /etc/brevet-agent/
quiet systemctl enable --now brevet-agent
state brevet-agent active
credential=/var/lib/brevet-agent/current
serial() { openssl x509 -in $credential/cert.pem -noout -serial | cut -d= -f2; }
first=$(serial)
quiet openssl verify -CAfile /var/lib/brevet/ceremony/root.crt -untrusted $credential/cert.pem $credential/cert.pem
quiet brevet-agent status --config /etc/brevet-agent/agent.yaml
mode "$(readlink -f $credential/key.pem)" '600 brevet-agent:brevet-agent'
say "The agent runs, and became ready with its certificate: $first."

# --- Restart, upgrade -------------------------------------------------------------------------------------------------
pid() { systemctl show "$1" --property MainPID --value; }
both_go_on() { # BEFORE: checks that both services run, in other processes than before
  systemctl is-active --quiet brevet brevet-agent || systemctl is-system-running --wait >/dev/null || true
  for name in brevet brevet-agent; do
    state "$name" active
    grep -qw "$(pid "$name")" <<<"$1" && fail "$name was not restarted"
  done
  quiet curl -fsS http://127.0.0.1:7090/readyz
  is "the agent's certificate" "$first" "$(serial)"
  is 'failed units' '' "$(systemctl list-units --failed --plain --no-legend 'brevet*')"
}
before="$(pid brevet) $(pid brevet-agent)"
quiet systemctl restart brevet brevet-agent
both_go_on "$before"
say 'Both restart and continue with their data.'

before="$(pid brevet) $(pid brevet-agent)"
quiet dpkg --install brevet_*.deb brevet-agent_*.deb
settle() { # waits for the restarts that the upgrade has started
  until [ -z "$(systemctl list-jobs --plain --no-legend 'brevet*')" ]; do sleep 0.1; done
}
settle
both_go_on "$before"
quiet brevet log verify
for name in brevet brevet-agent; do
  is "the version of $name" "$(dpkg-deb --field "$name"_*.deb Version)" "$(dpkg-query --show --showformat '${Version}' "$name")"
done
is "lines left of the older package's configuration" 0 "$(grep -c 'An older one' /etc/brevet/softhsm2.conf || true)"
say 'An upgrade restarts running services and replaces the configuration file, and the log still verifies.'

# --- Stop, revoke, refuse ---------------------------------------------------------------------------------------------
quiet systemctl stop brevet brevet-agent
for name in brevet brevet-agent; do
  is "the result of $name" success "$(systemctl show "$name" --property Result --value)"
done
quiet dpkg --install brevet_*.deb brevet-agent_*.deb
settle
state brevet inactive
state brevet-agent inactive
say 'Both stop cleanly, and an upgrade does not start stopped services.'

# --- Remove, install again --------------------------------------------------------------------------------------------
quiet systemctl start brevet brevet-agent
quiet dpkg --remove brevet brevet-agent
kept() {
  for path in /var/lib/brevet/store.db /var/lib/brevet/log.archive /var/lib/brevet/softhsm /etc/brevet/brevet.yaml /etc/brevet/pin \
    /var/lib/brevet-agent/current/key.pem /etc/brevet-agent/agent.yaml; do
    [ -e "$path" ] || fail "$path is gone"
  done
}
for name in brevet brevet-agent; do
  state "$name" inactive
  [ ! -e "/usr/bin/$name" ] || fail "/usr/bin/$name is still there"
done
kept
quiet dpkg --install brevet_*.deb brevet-agent_*.deb
settle
state brevet inactive
is 'brevet' enabled "$(systemctl is-enabled brevet)"
quiet systemctl start brevet brevet-agent
state brevet active
state brevet-agent active
is "the agent's certificate" "$first" "$(serial)"
say 'Removal stops the services and keeps their data; after reinstallation they continue.'

# --- Purge ------------------------------------------------------------------------------------------------------------
quiet dpkg --purge brevet brevet-agent
for name in brevet brevet-agent; do
  grep -q "^$name: /var/lib/$name stays" commands.log || fail "purging does not say that /var/lib/$name stays"
  state "$name" inactive
  [ ! -L "/etc/systemd/system/multi-user.target.wants/$name.service" ] || fail "$name is still enabled"
done
kept
[ ! -e /etc/brevet/softhsm2.conf ] || fail "purging does not remove the package's configuration file"
say "Purging keeps keys, store, log and the operator's files, and says so."
