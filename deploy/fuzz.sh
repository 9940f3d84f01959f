#!/bin/sh
# Runs every fuzz target in turn, for a time each. What a target finds is kept in the testdata/fuzz of its package, where
# every later run of the tests tries it again; what it learned stays in Go's build cache.

set -eu
cd "$(dirname "$0")/.."

each=${1-}
case "$each" in
[1-9]*[smhx]) ;;
*)
	echo 'usage: deploy/fuzz.sh TIME    how long each target runs, such as 30s or 5m, or how often, such as 1000x' >&2
	exit 2
	;;
esac

GO=${GO:-go}
learned=$($GO env GOCACHE)/fuzz
binaries=$(mktemp -d)
trap 'rm -rf "$binaries"' EXIT

# Trying for the default minute to shorten what is new would leave short runs no time for anything else.
shorten=1s

# One binary per package serves all of its targets: go test would link one for each.
for package in $($GO list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./...); do
	grep -q '^func Fuzz' "$package"/*_test.go || continue
	name=$(cd "$package" && $GO list)
	$GO test -c -fuzz . -o "$binaries/fuzz.test" "$name"
	cd "$package"
	for target in $("$binaries/fuzz.test" -test.list '^Fuzz'); do
		printf '== %s %s, %s\n' "$name" "$target" "$each"
		"$binaries/fuzz.test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$each" \
			-test.fuzzminimizetime "$shorten" -test.fuzzcachedir "$learned/$name"
	done
	cd "$OLDPWD"
done
