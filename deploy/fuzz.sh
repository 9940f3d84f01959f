#!/bin/sh
# Runs every fuzz target in turn, for a time each, and says at the end what was found. What a target finds is kept in the
# testdata/fuzz of its package, where every later run of the tests tries it again; what it learned stays in Go's build cache.
# It exits 1 if a target failed.

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

# A run that reaches its time while the engine works on an input may end as a failure (go.dev/issue/75804): "context deadline
# exceeded" is then all that it says, and no input is kept.
out_of_time() {
	grep -q '^ *context deadline exceeded$' "$1" && ! grep -q -e 'Failing input written to' -e '^panic: ' -e '^fatal error: ' "$1" &&
		[ "$(grep -c '^ *--- FAIL: ' "$1")" -le 1 ] && ! grep -q '^ *[A-Za-z0-9_]*\.go:[0-9]*: ' "$1"
}

tried=0 found=''
for package in $($GO list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./...); do
	grep -q '^func Fuzz' "$package"/*_test.go || continue
	name=$(cd "$package" && $GO list)
	# One binary per package serves all of its targets: go test would link one for each.
	$GO test -c -fuzz . -o "$binaries/fuzz.test" "$name"
	cd "$package"
	for target in $("$binaries/fuzz.test" -test.list '^Fuzz'); do
		printf '== %s %s, %s\n' "$name" "$target" "$each"
		tried=$((tried + 1))
		{
			"$binaries/fuzz.test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$each" \
				-test.fuzzminimizetime "$shorten" -test.fuzzcachedir "$learned/$name" 2>&1 && : >"$binaries/passed"
		} | tee "$binaries/output"
		if [ -e "$binaries/passed" ]; then
			rm "$binaries/passed"
		elif out_of_time "$binaries/output"; then
			echo 'the time was up while an input was tried (go.dev/issue/75804): this is no finding'
		else
			found="$found
  $name $target"
		fi
	done
	cd "$OLDPWD"
done

if [ -n "$found" ]; then
	printf '== %s targets, of which these failed, see above:%s\n' "$tried" "$found"
	exit 1
fi
printf '== %s targets, and nothing was found\n' "$tried"
