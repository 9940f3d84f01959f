#!/bin/sh
# Runs every fuzz target for a given time, and lists the targets that failed. Failing inputs are written to
# testdata/fuzz of the package, so that later test runs try them again; the corpus stays in Go's build cache. Exits 1 if
# a target failed.

set -eu
cd "$(dirname "$0")/.."

each=${1-}
case "$each" in
[1-9]*[smhx]) ;;
*)
	echo 'usage: deploy/fuzz.sh TIME    how long each target runs, such as 30s or 5m, or how many inputs, such as 1000x' >&2
	exit 2
	;;
esac

GO=${GO:-go}
learned=$($GO env GOCACHE)/fuzz
binaries=$(mktemp -d)
trap 'rm -rf "$binaries"' EXIT

# By default Go minimizes each new input for up to a minute, which would use up a short run.
shorten=1s

# out_of_time FILE: reports whether a run failed only because its time ended while it tried an input
# (go.dev/issue/75804). Its only output is then "context deadline exceeded", without a failing input.
out_of_time() {
	grep -q '^ *context deadline exceeded$' "$1" && ! grep -q -e 'Failing input written to' -e '^panic: ' -e '^fatal error: ' "$1" &&
		[ "$(grep -c '^ *--- FAIL: ' "$1")" -le 1 ] && ! grep -q '^ *[A-Za-z0-9_]*\.go:[0-9]*: ' "$1"
}

tried=0 found=''
for package in $($GO list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./...); do
	grep -q '^func Fuzz' "$package"/*_test.go || continue
	name=$(cd "$package" && $GO list)
	# Build one binary per package: go test would link one for each target.
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
			echo 'the time ended while an input was tried (go.dev/issue/75804): not a failure'
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
printf '== %s targets, none failed\n' "$tried"
