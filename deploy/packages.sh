#!/bin/sh
# Makes dist/*.deb from bin/. `make packages` builds bin/ and calls it. The same commit and tools give identical files.

set -eu
umask 022
cd "$(dirname "$0")/.."

GO=${GO:-go}
version=${VERSION:?set it to the version: make packages does}

# All files in a package have the time of the commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || true)}
if [ -z "$SOURCE_DATE_EPOCH" ]; then
	echo 'packages: there is no git history: set SOURCE_DATE_EPOCH to the time of the sources, in seconds since 1970' >&2
	exit 1
fi
export SOURCE_DATE_EPOCH

# Convert the version to Debian's order (deb-version(7)): v1.2.0-rc.1 sorts before 1.2.0, and commits after a tag sort
# after it. Without a tag, versions sort by time.
case $version in
v[0-9]*) DEB_VERSION=$(printf '%s\n' "${version#v}" | sed -E 's/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; s/-dirty$/+dirty/; s/-([a-z])/~\1/; s/-/./g') ;;
*) DEB_VERSION=0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$(printf '%s\n' "$version" | tr - +) ;;
esac
ARCH=$($GO env GOARCH)
# The oldest C library that has all symbols of the binaries.
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
	# One entry for Debian's tools (deb-changelog(5)).
	printf '%s (%s) unstable; urgency=medium\n\n  * Built from its sources; CHANGELOG.md has what is new.\n\n -- %s  %s\n' "$name" "$DEB_VERSION" \
		'The Brevet authors <brevet@brevet.internal>' "$(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %H:%M:%S +0000')" |
		gzip -9n >"$doc/changelog.gz"
	mkdir -p "dist/share/$name/lintian/overrides"
	cp "deploy/packages/$name.lintian-overrides" "dist/share/$name/lintian/overrides/$name"
	cp "deploy/$name.example.yaml" "$doc/examples/${name#brevet-}.yaml" # tests load it too
done

for name in brevet brevet-agent; do
	CGO_ENABLED=0 $GO tool -modfile=tools/nfpm.mod nfpm package --config "deploy/packages/$name.yaml" --packager deb --target dist/
done
