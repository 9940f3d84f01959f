#!/bin/sh
# Measures step-ca beside Brevet, with 64 callers and with one, and with 16 ACME clients, and prints a table for each.
# `make bench-step-ca` builds bin/brevet-bench and calls it. Arguments are passed on, such as --duration 6s, --rounds 2 or
# --output json.
#
# It builds step-ca from its Go module, once, which takes minutes and a gigabyte of modules; the binary stays in
# ~/.cache/brevet. Both servers sign with the same P-256 key in a SoftHSM, write to the same disk (set TMPDIR to choose
# it), and listen on the loopback interface only. At the end both are stopped, and their files removed.
# `bin/brevet-bench step-ca --help` says what is compared.

set -eu
cd "$(dirname "$0")/.."

version=v0.30.2
GO=${GO:-go}
dir=${XDG_CACHE_HOME:-$HOME/.cache}/brevet/step-ca-$version

if [ ! -x "$dir/step-ca" ]; then
	printf 'bench-step-ca: building step-ca %s\n' "$version" >&2
	mkdir -p "$dir"
	GOBIN=$(mktemp -d "$dir/build.XXXXXX")
	export GOBIN
	trap 'rm -rf "$GOBIN"' EXIT
	# Its PKCS#11 is C. Without the tag it also needs the headers of libpcsclite.
	CGO_ENABLED=1 "$GO" install -tags noyubikey "github.com/smallstep/certificates/cmd/step-ca@$version"
	mv "$GOBIN/step-ca" "$dir/"
fi

for callers in 64 1; do
	bin/brevet-bench step-ca --program "$dir/step-ca" --callers "$callers" "$@"
done
bin/brevet-bench acme --step-ca "$dir/step-ca" "$@"
