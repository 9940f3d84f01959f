#!/bin/sh
# Makes dist/*.deb from bin/: `make packages` calls it, after building. The same commit and tools make the same bytes.

set -eu
umask 022
cd "$(dirname "$0")/.."

GO=${GO:-go}
version=${VERSION:?say which version it is: make packages does}

# Everything in a package carries the time of its commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || true)}
if [ -z "$SOURCE_DATE_EPOCH" ]; then
	echo 'packages: there is no git history here: set SOURCE_DATE_EPOCH to the time of the sources, in seconds' >&2
	exit 1
fi
export SOURCE_DATE_EPOCH

# Debian compares versions (deb-version(7)): v1.2.0-rc.1 comes before 1.2.0, and 5 commits behind a tag are after it.
# Without a tag, time orders them.
case $version in
v[0-9]*) DEB_VERSION=$(printf '%s\n' "${version#v}" | sed -E 's/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; s/-dirty$/+dirty/; s/-([a-z])/~\1/; s/-/./g') ;;
*) DEB_VERSION=0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$(printf '%s\n' "$version" | tr - +) ;;
esac
ARCH=$($GO env GOARCH)
# The C library that the binaries were linked with, or an older one that has all it uses.
GLIBC=$(grep -haoE 'GLIBC_2\.[0-9]+' bin/brevet bin/brevet-bench | sort -Vu | tail -n 1 | cut -d_ -f2)
export DEB_VERSION ARCH GLIBC

rm -rf dist
bin/brevet manual dist/share/brevet
bin/brevet-bench manual dist/share/brevet
CGO_ENABLED=0 $GO run ./internal/agentmanual dist/share/brevet-agent

for name in brevet brevet-agent; do
	doc=dist/share/$name/doc/$name
	mkdir -p "$doc/examples"
	cp deploy/packages/copyright "$doc/"
	gzip -9n <CHANGELOG.md >"$doc/CHANGELOG.md.gz"
	# What Debian's tools read (deb-changelog(5)): one entry, of this package.
	printf '%s (%s) unstable; urgency=medium\n\n  * Built from its sources; CHANGELOG.md has what is new.\n\n -- %s  %s\n' "$name" "$DEB_VERSION" \
		'The Brevet authors <brevet@brevet.internal>' "$(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %H:%M:%S +0000')" |
		gzip -9n >"$doc/changelog.gz"
	mkdir -p "dist/share/$name/lintian/overrides"
	cp "deploy/packages/$name.lintian-overrides" "dist/share/$name/lintian/overrides/$name"
	cp "deploy/$name.example.yaml" "$doc/examples/${name#brevet-}.yaml" # which tests load
done

for name in brevet brevet-agent; do
	CGO_ENABLED=0 $GO tool -modfile=tools/nfpm.mod nfpm package --config "deploy/packages/$name.yaml" --packager deb --target dist/
done
