package node

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/store/retention"
)

// Config is the server's configuration. The comments of its fields are the reference in docs/configuration.md.
type Config struct {
	// Required. The SPIFFE trust domain of all identities: a host name in lower case, such as `fleet.example`. If the
	// issuing CA's certificate has name constraints, they must permit the trust domain.
	TrustDomain string `yaml:"trust_domain"`
	// Required. The absolute path of the state directory, such as `/var/lib/brevet`. The directory holds `store.db`,
	// `log.archive`, the published CRLs in `crls/`, and the server's own credentials in `own/`. It must belong to the
	// server's account, with mode 0700. `brevet ceremony install` creates it.
	StateDir string `yaml:"state_dir"`
	// Required. The DNS names and IP addresses by which clients reach the server, at least one, such as
	// `[ca.fleet.example, 192.0.2.10]`. The server's own certificate contains them. Wildcards are not allowed.
	ServerNames []string `yaml:"server_names"`
	// The server's address in enrollment tokens, as `host:port`. The default is the first of `server_names` with the
	// port of `listen.grpc`. Set the key if agents connect to another address or port, such as that of a load balancer.
	AdvertiseAddress string `yaml:"advertise_address"`
	// Required. The URL at which relying parties reach `listen.http`, such as `http://pki.fleet.example`. It must start
	// with `http://`: a client that fetched a CRL over TLS would first have to check the TLS certificate with that CRL.
	// The URL is embedded in certificates; changing the key does not affect those already issued.
	PublicURL string `yaml:"public_url"`
	// The URL at which clients reach `listen.https`, such as `https://ca.fleet.example`. The server builds every URL of
	// ACME from it, and never from what a client calls the server. The default is the first of `server_names` with the
	// port of `listen.https`. Set the key if clients connect to another name or port, such as that of a load balancer.
	HTTPSURL string `yaml:"https_url"`
	// The addresses that the server listens on.
	Listen ListenConfig `yaml:"listen"`
	// The database that holds the records.
	Store StoreConfig `yaml:"store"`
	// What a server does that shares its database with others (`store.postgres`). The keys have no effect on a server with
	// SQLite.
	Replica ReplicaConfig `yaml:"replica"`
	// The HSM that holds the issuing keys.
	HSM HSMConfig `yaml:"hsm"`
	// More HSMs with issuing keys, such as the HSM of an earlier CA generation: a list of groups with the keys of
	// `hsm`, such as `[{label: old, pin_file: /etc/brevet/old.pin}]`. `pin_file` is required in each group. The server
	// looks for the key of each installed CA in `hsm` first, and then in these HSMs. If one of them is unavailable when
	// the server starts, the server logs a warning. CAs with keys in that HSM then issue nothing, and the server renews
	// none of their CRLs, until the server is restarted.
	FurtherHSMs []HSMConfig `yaml:"further_hsms"`
	// The path of the first policy, a document with certificate profiles and rules that say which evidence is accepted,
	// and what it grants. A server with an empty store records it; later, `brevet policy apply` changes the policy, and
	// this key has no effect. By default, the first policy accepts enrollment tokens, and has the default profiles.
	Policy string `yaml:"policy"`
	// The maximum rates of RPCs. The server refuses RPCs above these rates as `server.rate_limited`, with a retry
	// delay.
	RateLimits RateLimitsConfig `yaml:"rate_limits"`
	// The OCSP responses to relying parties.
	OCSP OCSPConfig `yaml:"ocsp"`
	// The certificate revocation lists (CRLs), and the directories to which the server also publishes them.
	CRL CRLConfig `yaml:"crl"`
	// The protocol EST on the port `listen.https`. The policy says which requests are accepted (`est.labels`).
	EST ESTConfig `yaml:"est"`
	// The ACME door of the HTTPS listener: which hosts the server connects to when it validates challenges. The policy
	// decides whether ACME is enabled, and who gets certificates.
	ACME ACMEConfig `yaml:"acme"`
	// How long records stay in the store after their expiry, at least `2d`. Records are certificates with their request
	// IDs, tokens, and keys without a certificate. Until the server removes a certificate, `brevet cert` shows it, and
	// a repeated request gets the same response. After that only the log contains it. Log entries leave the store when
	// they are as old and in `log.archive`, from which the server then reads them. If the server's clock is ahead for
	// some time, the server removes records earlier by as much time. Choose a retention that is longer than a wrong
	// clock can remain unnoticed.
	Retention time.Duration `yaml:"retention"`
	// The archive of the log of everything that changed.
	Archive ArchiveConfig `yaml:"archive"`
	// The server's log on standard error.
	Log LogConfig `yaml:"log"`
	// OpenTelemetry traces of RPCs, HTTPS requests and the steps of issuing. Without an endpoint there are no traces.
	Tracing TracingConfig `yaml:"tracing"`
}

// ListenConfig holds the addresses that the server listens on.
type ListenConfig struct {
	// The address for gRPC over mutual TLS, which devices, workloads and operators use: `host:port`, or `:port` for
	// every address of the machine. The port is 1 to 65535.
	GRPC string `yaml:"grpc"`
	// The address for HTTP, from which relying parties get OCSP responses, CRLs and CA certificates: `host:port` or
	// `:port`.
	HTTP string `yaml:"http"`
	// The address for HTTPS, at which devices and servers use EST and ACME: `host:port` or `:port`. `""` in the file turns
	// the port off.
	HTTPS string `yaml:"https"`
	// The address for HTTP, from which monitoring gets metrics (`/metrics`), liveness (`/livez`) and readiness
	// (`/readyz`): `host:port` or `:port`. `""` in the file turns the port off. The port is open to every caller, so do
	// not expose it to other machines.
	Operations string `yaml:"operations"`
}

// StoreConfig locates the database.
type StoreConfig struct {
	// The connection to a PostgreSQL database, which several servers can share: a connection string of libpq, such as
	// `host=db.fleet.example dbname=brevet user=brevet_server sslmode=verify-full`. Put a password into a file that `passfile`
	// names, not here, or use a client certificate (`sslcert`, `sslkey`). Give the files of the password and of the key mode
	// 0600: the server checks that others cannot read them. It does not check what the string does not name, such as files of
	// `PGPASSFILE`, `PGSSLKEY` and `PGSERVICEFILE` in its environment, and `~/.pgpass`. The default is SQLite: the file
	// `store.db` in `state_dir`.
	Postgres string `yaml:"postgres"`
	// The name of this server among those that share the database: lower-case letters, digits and hyphens, at most 63.
	// Required with `store.postgres`. Two processes must never run under one name: the older one stops signing. `brevet serve
	// --check` and `brevet ceremony` look for such a process, and compare the first 56 characters only.
	Server string `yaml:"server"`
}

// ReplicaConfig holds the limits of a server that shares its database with others.
type ReplicaConfig struct {
	// For how long the server relies on what it has last read of the changes that other servers made, such as revocations:
	// `2s` to `5m`. When it has not been able to read them for longer, it answers OCSP requests with `tryLater`, and refuses
	// requests that depend on them as `server.stale`, until it can read them again. Measured by this server's own clock. A
	// longer time keeps the server available while its connection to the database is interrupted, and makes it say `good` of
	// a revoked certificate for longer then.
	MaxStaleness time.Duration `yaml:"max_staleness"`
}

// HSMConfig locates an HSM and its PIN.
type HSMConfig struct {
	// The path of the PKCS#11 library, such as `/usr/lib/softhsm/libsofthsm2.so`. The default is the system's SoftHSM.
	Module string `yaml:"module"`
	// The label of the HSM (of its PKCS#11 token). Exactly one of `hsm.label` and `hsm.serial` is required.
	Label string `yaml:"label"`
	// The serial number of the HSM, for HSMs with the same label. Exactly one of `hsm.label` and `hsm.serial` is
	// required.
	Serial string `yaml:"serial"`
	// The file that contains the PIN. Its mode must be 0600, or 0640 with the service's group. The default is the
	// systemd credential `pin`. Without file and credential, the command prompts for the PIN.
	PINFile string `yaml:"pin_file"`
	// The maximum number of signatures that the server requests from the HSM at once, 1 to 256. `brevet-bench hsm`
	// measures above which number the HSM's rate no longer increases.
	Sessions int `yaml:"sessions"`
}

// RateLimitsConfig holds the maximum rates of RPCs.
type RateLimitsConfig struct {
	// The rate of callers with a valid certificate, for each identity with one key. The server does not limit RPCs of
	// operators that revoke, suspend, resume, retire, import CRLs or create tokens.
	Identity RateConfig `yaml:"identity"`
	// The rate of callers without a valid certificate, such as devices that enroll, for each IP address. IPv6 addresses
	// with the same first 64 bits count as one address. All hosts behind one gateway share its address, so raise the
	// rate if many devices enroll through one gateway.
	Address RateConfig `yaml:"address"`
}

// RateConfig is the maximum rate of one source.
type RateConfig struct {
	// The maximum number of RPCs per second on average, `0.01` to `1000000`.
	PerSecond float64 `yaml:"per_second"`
	// The maximum number of RPCs that a source may send at once after a pause, `1` to `1000000`.
	Burst int `yaml:"burst"`
}

// OCSPConfig holds the properties of OCSP responses.
type OCSPConfig struct {
	// How long HTTP caches may keep an OCSP response, `1s` to `1h`. Relying parties behind a cache may get `good` for
	// that long after a revocation. A response expires (`nextUpdate`) after five minutes, or after twice `ocsp.max_age`
	// if that is longer. Servers may staple it until then. If the responder has not been able to read the store for
	// that long, it responds `tryLater`.
	MaxAge time.Duration `yaml:"max_age"`
	// Whether the responder reports certificates that were never issued as `revoked` (on hold since 1970) instead of
	// `unknown` (RFC 6960 section 2.2). Set the key if relying parties accept certificates with the status `unknown`.
	// The key also applies to certificates that expired more than an hour ago, because the responder has removed their
	// statuses.
	ExtendedRevoke bool `yaml:"extended_revoke"`
}

// ESTConfig holds what the server accepts from clients of EST.
type ESTConfig struct {
	// The oldest version of TLS that clients of EST may use: `1.3` or `1.2`. Set `1.2` for old devices only.
	MinTLS string `yaml:"min_tls"`
}

// version returns the version of TLS as crypto/tls numbers it.
func (c ESTConfig) version() (uint16, error) {
	switch c.MinTLS {
	case "1.3":
		return tls.VersionTLS13, nil
	case "1.2":
		return tls.VersionTLS12, nil
	default:
		return 0, fmt.Errorf("%q is not a version: use 1.3 or 1.2", c.MinTLS)
	}
}

// CRLConfig holds the number of CRLs, and where they are published.
type CRLConfig struct {
	// The number of partitions into which the server divides each issuing CA's certificates, 1 to 1024. Each partition
	// has a CRL of its own, in addition to the full CRL. If a profile has `{partition}` in its `crl_url`, each of its
	// certificates names the CRL of one partition, and a relying party fetches only that CRL. A change of the number
	// applies to new certificates: issued certificates keep their partition.
	Partitions int `yaml:"partitions"`
	// The absolute paths of directories to which the server also writes every CRL, such as `[/srv/www/crl]`, for
	// another web server or the origin of a CDN. The directories must exist, and be writable for the server. A CRL has
	// the same path in a directory as below `/crl/` of `listen.http`, and every account can read it. The server also
	// writes each full CRL in PEM to `ISSUER.crl.pem`, and those of all CAs to `chain.crl.pem`, for nginx and
	// mosquitto. Several servers may write to one directory: a server never replaces a CRL with a higher number.
	Directories []string `yaml:"directories"`
	// How long HTTP caches may keep a CRL from `listen.http`, `1s` to `1h`, and never beyond its nextUpdate. Relying
	// parties behind a cache may get a CRL without the latest revocations for that long.
	MaxAge time.Duration `yaml:"max_age"`
}

// ACMEConfig holds which hosts the server connects to for challenges, and the TLS version of ACME clients.
type ACMEConfig struct {
	// The recursive DNS resolvers that the server asks about names in challenges, at most 4, such as
	// `[192.0.2.53, "[2001:db8::53]:5353"]`. The default port is 53. The server asks the next one if one does not respond. By
	// default it asks the resolvers that `/etc/resolv.conf` names when the server starts. An attacker who controls the responses of
	// a resolver can get certificates for names that are validated through it.
	Resolvers []string `yaml:"resolvers"`
	// The networks to which the server connects for the challenges http-01 and tls-alpn-01, such as
	// `[10.0.0.0/8, 2001:db8::/32]`. By default the server connects to every unicast address, except loopback and link-local
	// addresses and those at which clouds serve the metadata of machines. The key replaces that list completely.
	Networks []string `yaml:"networks"`
	// The port of the challenge http-01, 1 to 65535. Clients expect 80.
	HTTPPort int `yaml:"http_port"`
	// The port of the challenge tls-alpn-01, 1 to 65535. Clients expect 443.
	TLSPort int `yaml:"tls_port"`
	// The oldest TLS version that ACME clients may use, `1.2` or `1.3`.
	MinTLS string `yaml:"min_tls"`
}

// ArchiveConfig holds the second copy of the log's archive.
type ArchiveConfig struct {
	// The absolute path of a directory on another disk, such as `/mnt/archive`, in which the server keeps a second copy
	// of `log.archive`, by the same name. The server never creates the file, because the disk may not be mounted: begin
	// with an empty file that belongs to the server's account, with mode 0600. A call that revokes takes effect first,
	// and then waits for the copy, for two seconds at most; if the copy fails, the response says so (`copied`), and
	// the server retries. Each server of a shared store needs a directory of its own. By default there
	// is no copy.
	Copy string `yaml:"copy"`
}

// LogConfig holds the properties of the log.
type LogConfig struct {
	// The format of records: `text` or `json`.
	Format config.LogFormat `yaml:"format"`
	// The minimum level of records: `debug`, `info`, `warn` or `error`.
	Level config.LogLevel `yaml:"level"`
}

// DefaultConfig returns the configuration with the default of every key.
func DefaultConfig() Config {
	limits := server.DefaultLimits()
	return Config{
		RateLimits: RateLimitsConfig{Identity: RateConfig(limits.Identity), Address: RateConfig(limits.Address)},
		Listen:     ListenConfig{GRPC: ":7443", HTTP: ":7080", HTTPS: ":8443", Operations: "127.0.0.1:7090"},
		Replica:    ReplicaConfig{MaxStaleness: responder.DefaultMaxStaleness},
		HSM:        HSMConfig{Sessions: hsm.DefaultSessions},
		OCSP:       OCSPConfig{MaxAge: responder.DefaultMaxAge},
		CRL:        CRLConfig{Partitions: ca.DefaultPartitions, MaxAge: responder.DefaultCRLMaxAge},
		EST:        ESTConfig{MinTLS: "1.3"},
		ACME:       ACMEConfig{HTTPPort: validation.DefaultHTTPPort, TLSPort: validation.DefaultTLSPort, MinTLS: tls13},
		Log:        LogConfig{Format: config.LogText}, Retention: retention.Default,
		Tracing: TracingConfig{SampleRatio: 1},
	}
}

// TracingConfig holds the collector of OpenTelemetry traces.
type TracingConfig struct {
	// The URL of a collector for OTLP over gRPC, with host and port: `http://127.0.0.1:4317` without TLS, or
	// `https://collector.example:4317` with TLS and the system's roots. By default there are no traces.
	Endpoint string `yaml:"endpoint"`
	// The share of RPCs and HTTPS requests that the server traces, from `0` (none) to `1` (all). Callers cannot change the
	// share.
	SampleRatio float64 `yaml:"sample_ratio"`
}

// ReplacedKeys implements [config.Replacer].
func (*Config) ReplacedKeys() map[string]string {
	return map[string]string{
		"directory": "state_dir", "names": "server_names", "address": "advertise_address", "token": "hsm",
		"further_tokens": "further_hsms", "limits": "rate_limits", "traces": "tracing", "tracing.share": "tracing.sample_ratio",
		"profiles": "profiles in the document of the policy (brevet policy apply)",
	}
}

// PIN reads the PIN of the HSM in hsm from the configured source.
func (c *Config) PIN() (hsm.PIN, error) {
	pin, err := ReadPIN(c.HSM.PINFile)
	if err != nil {
		return pin, fmt.Errorf("hsm.pin_file: %w", err)
	}
	return pin, nil
}

// Logger returns a logger that writes to standard error.
func (c *Config) Logger(cmd *cobra.Command) *slog.Logger {
	return c.Log.Format.Logger(cmd.ErrOrStderr(), c.Log.Level)
}

// Module returns the configured PKCS#11 library, or SoftHSM's if none is configured.
func Module(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	return hsm.FindSoftHSM()
}
