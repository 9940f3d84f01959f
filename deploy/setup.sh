#!/bin/sh
# Installs the packages that Brevet needs to be built, run and tested, if they are missing.
# It starts and configures nothing. A second run changes nothing.

set -eu

usage() {
	cat <<'EOF'
usage: deploy/setup.sh [--build | --tpm | --test | --judges]

  --build   only what building needs
  --tpm     what building and running need, and an emulated TPM for make demo-tpm
  --test    also the programs that the tests use
  --judges  also the large programs of make test-judges
  (none)    what building and running need

Installs missing packages with apt-get, as root or with sudo. If that is not possible, it prints what to install and
exits 1.
EOF
}

tpm=3 # the stage that needs an emulated TPM
case "${1-}" in
'') stage=2 purpose='build and run' ;;
--build) stage=1 purpose='build' ;;
--tpm) stage=2 tpm=2 purpose='build, run and emulate a TPM' ;;
--test) stage=3 purpose='build, run and test' ;;
--judges) stage=4 purpose='build, run and test, with make test-judges' ;;
-h | --help)
	usage
	exit 0
	;;
*)
	usage >&2
	exit 2
	;;
esac
if [ $# -gt 1 ]; then
	usage >&2
	exit 2
fi

deno_version=2.9.6
root=$(cd "$(dirname "$0")/.." && pwd)

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; }

have() { command -v "$1" >/dev/null 2>&1; }

have_file() {
	for file in "$@"; do
		if [ -e "$file" ]; then return 0; fi
	done
	return 1
}

have_compiler() { have "${CC:-gcc}"; }

# The compiler looks for headers, because their directories differ between systems.
have_libc() {
	have_compiler && printf '#include <stdlib.h>\n' | "${CC:-gcc}" -E -x c - >/dev/null 2>&1
}

have_header() { have_compiler && printf '#include <%s>\n' "$1" | "${CC:-gcc}" -E -x c - >/dev/null 2>&1; }

have_python_cryptography() { have_file /usr/bin/python3 && /usr/bin/python3 -c 'import cryptography' 2>/dev/null; }

have_python_grpc() { have_file /usr/bin/python3 && /usr/bin/python3 -c 'import grpc, google.protobuf' 2>/dev/null; }

have_roots() {
	have_file ${SSL_CERT_FILE:+"$SSL_CERT_FILE"} /etc/ssl/certs/ca-certificates.crt \
		/etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem
}

# The same paths as in hsm/softhsm.go.
have_softhsm() {
	have softhsm2-util && have_file /usr/lib/softhsm/libsofthsm2.so /usr/lib/*-linux-gnu/softhsm/libsofthsm2.so \
		/usr/lib64/pkcs11/libsofthsm2.so /usr/lib64/softhsm/libsofthsm2.so /usr/lib/pkcs11/libsofthsm2.so \
		/usr/lib/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so /opt/homebrew/lib/softhsm/libsofthsm2.so \
		/home/linuxbrew/.linuxbrew/lib/softhsm/libsofthsm2.so
}

have_namespaces() { have unshare && have nsenter && have setpriv && have runuser && have pivot_root && have ip; }

have_gnutls() { have certtool && have ocsptool && have gnutls-cli; }

have_nss() { have certutil && have crlutil && have vfychain; }

# A JDK, which runs a program from its source.
have_java() { have java && have javac; }

# Debian packages the plugins for elliptic curves and for HTTPS separately.
have_pki() {
	have pki && pki --help 2>/dev/null | grep -q -- --estca &&
		! pki --help 2>&1 | grep -q "^plugin '\(openssl\|curl\)': failed"
}

have_tpm2_openssl() {
	have_file /usr/lib/*-linux-gnu/ossl-modules/tpm2.so /usr/lib64/ossl-modules/tpm2.so /usr/lib/ossl-modules/tpm2.so
}

# These programs may be installed without a library that they need, so run them.
have_nginx() { have nginx && nginx -v >/dev/null 2>&1; }
have_mosquitto() { have mosquitto && mosquitto -h 2>/dev/null | grep -q version && have mosquitto_pub; }
have_mod_md() { have apache2 && have_file /usr/lib/apache2/modules/mod_md.so; }
have_postgres() { have initdb || have_file /usr/lib/postgresql/*/bin/initdb; }
have_pgbouncer() { have pgbouncer || have_file /usr/sbin/pgbouncer; }
have_haproxy() { have haproxy && haproxy -v >/dev/null 2>&1; }

# missing STAGE PROBE DEBIAN FEDORA ALPINE MACOS WHY: adds the packages to the lists if the probe fails.
# Probes look for the tool, not for the package, because it may have been installed in another way.
debian='' fedora='' alpine='' macos=''
missing() {
	if [ "$1" -gt "$stage" ] || $2; then return 0; fi
	say "missing $3: $7"
	debian="$debian $3" fedora="$fedora $4" alpine="$alpine $5" macos="$macos $6"
}

survey() {
	debian='' fedora='' alpine='' macos=''
	missing 1 have_compiler gcc gcc gcc '' 'compiles SQLite and the PKCS#11 binding'
	missing 1 have_libc libc6-dev glibc-devel musl-dev '' 'C headers'
	missing 1 'have make' make make make '' 'runs the targets of the Makefile'
	missing 1 have_roots ca-certificates ca-certificates ca-certificates ca-certificates \
		'TLS roots, with which go downloads modules'
	missing 2 have_softhsm softhsm2 softhsm softhsm softhsm 'the PKCS#11 token that holds the keys of the demo'
	missing 2 'have openssl' openssl openssl openssl openssl 'verifies certificates and requests OCSP responses'
	missing 2 'have curl' curl curl curl curl 'fetches the CRL over HTTP, as a relying party does'
	missing 3 'have pkcs11-tool' opensc opensc opensc opensc 'reads the token with independent code'
	missing 3 'have_file /usr/include/p11-kit-1/p11-kit/pkcs11.h' libp11-kit-dev p11-kit-devel p11-kit-dev p11-kit \
		'headers for a test module that loses its PKCS#11 device'
	missing 3 have_gnutls gnutls-bin gnutls-utils gnutls-utils gnutls \
		'verifies certificates, CRLs and OCSP: certtool, ocsptool, gnutls-cli'
	missing 3 'have promtool' prometheus golang-github-prometheus prometheus prometheus \
		'promtool, which checks the alert rules and the dashboard'
	missing 3 'have wrk' wrk wrk wrk wrk 'load generator for brevet-bench ocsp'
	missing 3 have_nss libnss3-tools nss-tools nss-tools nss 'checks CRLs and OCSP as Firefox does: certutil, crlutil, vfychain'
	missing 3 'have_file /usr/bin/python3' python3 python3 python3 python 'reads the names in certificates'
	missing 3 have_java default-jdk-headless java-21-openjdk-devel openjdk21-jdk openjdk 'checks CRLs and OCSP as Java programs do'
	missing 3 'have_file /usr/share/java/bcpkix.jar' libbcpkix-java bouncycastle-pkix '' '' 'Bouncy Castle: checks CRLs and OCSP'
	missing 3 have_nginx 'nginx libpcre2-8-0' nginx nginx nginx 'staples OCSP responses, and checks its clients'
	missing 3 have_haproxy 'haproxy liblua5.3-0 libopentracing-c-wrapper0' haproxy haproxy haproxy 'staples OCSP responses'
	missing 3 'have_header mbedtls/ssl.h' libmbedtls-dev mbedtls-devel mbedtls-dev mbedtls 'verifies chains as firmware does'
	missing 3 'have_header wolfssl/ssl.h' libwolfssl-dev wolfssl-devel wolfssl-dev wolfssl 'verifies chains as firmware does'
	missing 3 have_python_cryptography python3-cryptography python3-cryptography py3-cryptography '' 'reads certificates as Python programs do'
	missing 3 have_python_grpc 'python3-grpcio python3-protobuf' python3-grpcio py3-grpcio '' 'calls the server from Python'
	missing 3 'have protoc' 'protobuf-compiler libprotobuf-dev' 'protobuf-compiler protobuf-devel' 'protoc protobuf-dev' protobuf \
		'generates that Python, with the next'
	missing 3 'have grpc_python_plugin' protobuf-compiler-grpc grpc-plugins grpc-plugins grpc 'the plugin for gRPC'
	missing 3 'have age' age age age age 'decrypts backups with independent code'
	missing 3 have_postgres postgresql postgresql-server postgresql postgresql 'a database that several servers share'
	missing 3 have_pgbouncer pgbouncer pgbouncer pgbouncer pgbouncer 'a connection pooler, which a server refuses'
	missing 3 have_mosquitto 'mosquitto libdlt2 libwrap0 libwebsockets17 mosquitto-clients' mosquitto mosquitto mosquitto \
		'a broker that identifies clients by their certificates'
	missing "$tpm" 'have swtpm' swtpm swtpm swtpm '' 'emulates a TPM 2.0'
	missing 3 'have swtpm_setup' swtpm-tools swtpm-tools swtpm '' 'makes emulated TPMs with certified endorsement keys'
	missing "$tpm" 'have tpm2_certify' tpm2-tools tpm2-tools tpm2-tools '' 'uses a TPM with independent code'
	missing "$tpm" have_tpm2_openssl tpm2-openssl tpm2-openssl tpm2-openssl '' 'lets OpenSSL use keys in a TPM'
	missing 3 'have strace' strace strace strace '' 'records the writes of a server, to simulate power cuts'
	missing 3 'have systemd-analyze' systemd systemd systemd '' 'rates the sandboxing of the service files'
	missing 3 have_namespaces 'util-linux iproute2' 'util-linux iproute' 'util-linux iproute2' '' \
		'makes a copy of this system to test packages in'
	missing 3 'have_file /usr/share/bash-completion/bash_completion' bash-completion bash-completion bash-completion '' \
		'tests the shell completions of the packages'
	missing 4 have_pki 'strongswan-pki libstrongswan-standard-plugins libstrongswan-extra-plugins' strongswan strongswan '' 'enrolls with EST: pki --est'
	missing 4 'have_file /usr/share/java/bctls.jar' libbctls-java bouncycastle-tls '' '' 'lets Bouncy Castle link its requests of EST to the connection'
	missing 4 'have npm' npm npm npm node 'installs Deno, whose TLS is rustls, and acme-client'
	missing 4 'have certbot' certbot certbot certbot certbot 'gets certificates over ACME'
	missing 4 'have lego' lego lego lego lego 'gets certificates over ACME, also with tls-alpn-01'
	missing 4 'have dehydrated' dehydrated dehydrated dehydrated dehydrated 'gets certificates over ACME, as a shell script'
	missing 4 'have uacme' uacme uacme uacme uacme 'gets certificates over ACME, as a program in C'
	missing 4 'have caddy' caddy caddy caddy caddy 'a web server that gets its certificates over ACME'
	missing 4 have_mod_md apache2 'httpd mod_md' 'apache2 apache2-md' httpd 'a web server with mod_md, which gets certificates over ACME'
}

# by_hand WHY: prints the command that installs the missing packages, and exits.
by_hand() {
	fail "$1; install this, then run it again:"
	if have apt-get; then
		fail "  sudo apt-get install --no-install-recommends$debian"
	elif have dnf; then
		fail "  sudo dnf install$fedora"
	elif have apk; then
		fail "  sudo apk add$alpine"
	elif have brew || [ "$(uname -s)" = Darwin ]; then
		case "$debian" in *gcc* | *libc6-dev* | *make*) fail "  xcode-select --install" ;; esac
		if [ -n "${macos# }" ]; then fail "  brew install$macos"; fi
	else
		fail "  Debian, Ubuntu:$debian"
		fail "  Fedora:        $fedora"
		fail "  Alpine:        $alpine"
		fail "  macOS:          the Xcode command line tools;$macos"
	fi
	exit 1
}

# as_root COMMAND...: runs a command as root. sudo may ask for a password only on a terminal.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif have sudo && sudo -n true 2>/dev/null; then
		sudo -n "$@"
	elif have sudo && [ -t 0 ] && [ -t 2 ]; then
		sudo "$@"
	else
		return 126
	fi
}

# Recommended packages are not installed, because opensc recommends a smart card daemon. needrestart is suspended,
# because it would restart unrelated services.
apt() {
	as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
		apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

# take PACKAGE PROGRAM: installs one program of a package, such as usr/bin/promtool, without installing the package,
# whose server would start.
take() {
	dir=$(mktemp -d) || return 1
	status=0
	(cd "$dir" && apt -o APT::Sandbox::User=root download "$1") &&
		as_root sh -c 'dpkg-deb --fsys-tarfile "$1/$2"_*.deb | tar -x -C "$1" "./$3" &&
			install -m 0755 "$1/$3" /usr/local/bin/' sh "$dir" "$1" "$2" || status=1
	as_root rm -rf "$dir"
	return "$status"
}

install_missing() {
	have apt-get || by_hand 'apt-get is not available'
	as_root true || by_hand 'installing packages needs root or sudo'
	say "installing with apt-get:$debian"
	apt update || fail 'updating the package lists failed, continuing with the old ones'
	packages=''
	for package in $debian; do
		case "$package" in
		prometheus) take prometheus usr/bin/promtool || by_hand 'promtool could not be extracted from its package' ;;
		nginx) take nginx usr/sbin/nginx || by_hand 'nginx could not be extracted from its package' ;;
		mosquitto) take mosquitto usr/sbin/mosquitto || by_hand 'mosquitto could not be extracted from its package' ;;
		haproxy) take haproxy usr/sbin/haproxy || by_hand 'haproxy could not be extracted from its package' ;;
		*) packages="$packages $package" ;;
		esac
	done
	# shellcheck disable=SC2086 # a list of package names, one word each
	[ -z "$packages" ] || apt install -y --no-install-recommends $packages || by_hand 'apt-get could not install everything'
	survey
	if [ -n "$debian" ]; then by_hand 'packages are still missing'; fi
}

# go list fails if this Go is too old for the module and may not download a newer one.
check_go() {
	wanted=$(sed -n 's/^go //p' "$root/go.mod")
	if ! have go; then
		fail "go is not on the PATH; install Go $wanted or newer (https://go.dev/doc/install), then run it again"
		if [ -x /usr/local/go/bin/go ]; then fail 'there is one in /usr/local/go/bin: add that directory to the PATH'; fi
		exit 1
	fi
	if ! why=$(cd "$root" && GOWORK=off go list -m 2>&1); then
		fail "this Go cannot build Brevet: $why"
		fail "install Go $wanted or newer (https://go.dev/doc/install), then run it again"
		exit 1
	fi
}

# Debian has no package of these programs, or only an old one. They are installed into a cache directory of the user.
judges=${XDG_CACHE_HOME:-${HOME-}/.cache}/brevet/judges

install_deno() {
	if "$judges/node_modules/.bin/deno" --version 2>/dev/null | grep -q "^deno $deno_version "; then return 0; fi
	say "installing deno $deno_version with npm in $judges"
	mkdir -p "$judges" && npm install --silent --no-audit --no-fund --prefix "$judges" "deno@$deno_version" >/dev/null || {
		fail 'npm could not install deno: see its output above'
		exit 1
	}
}

# The lock file pins acme-client and what it needs, with their digests.
install_acme_client() {
	source=$root/server/acme/testdata/acme-client target=$judges/acme-client
	if cmp -s "$source/package-lock.json" "$target/installed"; then return 0; fi
	say "installing acme-client with npm in $target"
	mkdir -p "$target" && cp "$source/package.json" "$source/package-lock.json" "$target" &&
		(cd "$target" && npm ci --silent --no-audit --no-fund --ignore-scripts >/dev/null) &&
		cp "$source/package-lock.json" "$target/installed" || {
		fail 'npm could not install acme-client: see its output above'
		exit 1
	}
}

# build_judge NAME MODFILE TAGS PACKAGE: builds a program in Go whose versions tools/MODFILE pins. go does nothing if it is
# built already.
build_judge() {
	[ -x "$judges/bin/$1" ] || say "building $1 in $judges/bin"
	mkdir -p "$judges/bin" && (cd "$root" && CGO_ENABLED=0 GOWORK=off go build -trimpath -buildvcs=false -modfile="tools/$2" \
		-mod=readonly -tags "$3" -o "$judges/bin/$1" "$4") || {
		fail "go could not build $1: see its output above"
		exit 1
	}
}

survey
if [ -n "$debian" ]; then install_missing; fi
check_go
if [ "$stage" -ge 4 ]; then
	install_deno
	install_acme_client
	build_judge lego-5 lego.mod lego_dnslight github.com/go-acme/lego/v5 # the tag leaves out the providers of dns-01
	build_judge caddy-2.11 caddy.mod '' github.com/caddyserver/caddy/v2/cmd/caddy
fi
say "everything to $purpose is installed"
