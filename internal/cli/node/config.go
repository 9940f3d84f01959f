package node

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/store/retention"
)

// Config is the server's configuration. The comments of its fields are the reference in docs/configuration.md.
type Config struct {
	// Required. The SPIFFE trust domain that every identity is in: a host name in lower case, such as `fleet.example`.
	// If the issuing CA's certificate has name constraints, they must permit it.
	TrustDomain string `yaml:"trust_domain"`
	// Required. The absolute path of the state directory, such as `/var/lib/brevet`. It holds `store.db`,
	// `log.archive`, the published CRLs in `crls/`, and the server's own credentials in `own/`. It must belong to the
	// server's account, with mode 0700. `brevet ceremony install` creates it.
	StateDir string `yaml:"state_dir"`
	// Required. The DNS names and IP addresses by which clients reach the server, at least one, such as
	// `[ca.fleet.example, 192.0.2.10]`. The server's own certificate contains them. Wildcards are not allowed.
	ServerNames []string `yaml:"server_names"`
	// The server's address in enrollment tokens, as `host:port`. The default is the first of `server_names` with the
	// port of `listen.grpc`. Set it if agents connect through another port, such as that of a load balancer.
	AdvertiseAddress string `yaml:"advertise_address"`
	// Required. The URL at which relying parties reach `listen.http`, such as `http://pki.fleet.example`. It starts
	// with `http://`: with TLS, a client would need this URL to check the certificate of this URL. The URL is embedded
	// in certificates; changing it does not affect those already issued.
	PublicURL string `yaml:"public_url"`
	// The addresses that the server listens on.
	Listen ListenConfig `yaml:"listen"`
	// The HSM that holds the issuing keys.
	HSM HSMConfig `yaml:"hsm"`
	// Further HSMs with issuing keys, such as that of an earlier CA generation: a list of groups with the keys of
	// `hsm`, such as `[{label: old, pin_file: /etc/brevet/old.pin}]`. The server looks for the key of each installed CA
	// in `hsm` first, and then in these. `pin_file` is required here. If one of them is not available at the start, the
	// server logs a warning. Until it is restarted, the CAs with keys there issue nothing, and their CRLs are not
	// renewed.
	FurtherHSMs []HSMConfig `yaml:"further_hsms"`
	// The contents of certificates, by the name of the profile. These profiles are added to the default profiles below.
	// A profile with the name of a default profile replaces it as a whole. By default an identity has the profile with
	// the name of its kind; `brevet identity create --profile` chooses another.
	Profiles map[string]ca.ProfileConfig `yaml:"profiles"`
	// The maximum rates of RPCs. RPCs above them are refused as `server.rate_limited`, with a retry delay.
	RateLimits RateLimitsConfig `yaml:"rate_limits"`
	// The OCSP responses to relying parties.
	OCSP OCSPConfig `yaml:"ocsp"`
	// The certificate revocation lists, and where they are published beside `listen.http`.
	CRL CRLConfig `yaml:"crl"`
	// How long expired records stay in the store, at least `2d`: certificates with their request IDs, tokens, and keys
	// without a certificate. During that time `brevet cert` shows certificates, and a repeated request gets the same
	// response. After that only the log contains them. If the server's clock is ahead, records are removed that much
	// earlier, so the retention must be longer than a wrong clock can stay unnoticed ahead.
	Retention time.Duration `yaml:"retention"`
	// The server's log on standard error.
	Log LogConfig `yaml:"log"`
	// OpenTelemetry traces of RPCs and of the steps of issuing. Without an endpoint there are no traces.
	Tracing TracingConfig `yaml:"tracing"`
}

// ListenConfig holds the addresses that the server listens on.
type ListenConfig struct {
	// The address of gRPC over mutual TLS, for devices, workloads and operators: `host:port`, or `:port` for every
	// address of the machine. The port is 1 to 65535.
	GRPC string `yaml:"grpc"`
	// The address of OCSP, CRLs and CA certificates over HTTP, for relying parties: `host:port` or `:port`.
	HTTP string `yaml:"http"`
	// The address of metrics (`/metrics`), liveness (`/livez`) and readiness (`/readyz`) over HTTP: `host:port` or
	// `:port`, or `""` in the file for none. It checks no credentials, so do not expose it.
	Operations string `yaml:"operations"`
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
	// The file with the PIN, of mode 0600, or 0640 for the service's group. The default is the systemd credential
	// `pin`. Without one, the command prompts for the PIN.
	PINFile string `yaml:"pin_file"`
	// The maximum number of concurrent signatures, 1 to 256. A number above what the HSM can do at once does not
	// increase its rate; `brevet-bench hsm` measures that.
	Sessions int `yaml:"sessions"`
}

// RateLimitsConfig holds the maximum rates of RPCs.
type RateLimitsConfig struct {
	// The rate of each key of an identity: of devices, workloads and operators. It does not limit RPCs of operators
	// that revoke, suspend, resume, retire or import CRLs.
	Identity RateConfig `yaml:"identity"`
	// The rate of all callers without a valid certificate at one IP address, such as devices that enroll. Hosts behind
	// one gateway share an address. IPv6 addresses with the same first 64 bits count as one. Raise it if many devices
	// enroll through one gateway.
	Address RateConfig `yaml:"address"`
}

// RateConfig is the maximum rate of one source.
type RateConfig struct {
	// The maximum average number of RPCs per second, `0.01` to `1000000`.
	PerSecond float64 `yaml:"per_second"`
	// The maximum number of RPCs at once after a pause, `1` to `1000000`.
	Burst int `yaml:"burst"`
}

// OCSPConfig holds the properties of OCSP responses.
type OCSPConfig struct {
	// How long caches may keep a response, `1s` to `1h`. Relying parties behind a cache may see `good` for that long
	// after a revocation. Responses expire (`nextUpdate`) after five minutes, or after twice `ocsp.max_age` if that is
	// longer, and may be stapled until then. If the responder cannot read the store for that long, it responds
	// `tryLater`.
	MaxAge time.Duration `yaml:"max_age"`
	// Whether the status of a certificate that was never issued is `revoked`, on hold since 1970, instead of `unknown`
	// (RFC 6960 section 2.2). Set it if relying parties accept certificates with an unknown status. It also applies to
	// certificates that expired more than an hour ago, which the responder no longer knows.
	ExtendedRevoke bool `yaml:"extended_revoke"`
}

// CRLConfig holds the number of CRLs, and where they are published.
type CRLConfig struct {
	// The number of partitions of each issuing CA's CRL, 1 to 1024, beside the full CRL. Certificates of profiles with
	// `{partition}` in their `crl_url` are distributed over the partitions, and a relying party fetches only one. A
	// change applies to new certificates: issued certificates keep their partition.
	Partitions int `yaml:"partitions"`
	// Directories to which every CRL is published too, for another web server or the origin of a CDN: absolute paths,
	// such as `[/srv/www/crl]`. They must exist, and the server must be able to write there. The files have the same
	// paths as below `/crl/` of `listen.http`, and are readable for all accounts. Full CRLs are also written as PEM to
	// `ISSUER.crl.pem`, and those of all CAs to one file, `chain.crl.pem`, for nginx and mosquitto. Several servers may
	// publish to one directory: of two CRLs with the same path, the CRL with the higher number stays.
	Directories []string `yaml:"directories"`
	// How long caches may keep a CRL from `listen.http`, `1s` to `1h`, and never beyond its nextUpdate. Relying parties
	// behind a cache may fetch a CRL without the latest revocations for that long.
	MaxAge time.Duration `yaml:"max_age"`
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
		Listen:     ListenConfig{GRPC: ":7443", HTTP: ":7080", Operations: "127.0.0.1:7090"},
		HSM:        HSMConfig{Sessions: hsm.DefaultSessions},
		OCSP:       OCSPConfig{MaxAge: responder.DefaultMaxAge},
		CRL:        CRLConfig{Partitions: ca.DefaultPartitions, MaxAge: responder.DefaultCRLMaxAge},
		Log:        LogConfig{Format: config.LogText}, Retention: retention.Default,
		Tracing: TracingConfig{SampleRatio: 1},
	}
}

// TracingConfig holds the collector of OpenTelemetry traces.
type TracingConfig struct {
	// The URL of a collector for OTLP over gRPC, with host and port: `http://127.0.0.1:4317` without TLS, or
	// `https://collector.example:4317` with TLS and the system's roots. By default there are no traces.
	Endpoint string `yaml:"endpoint"`
	// The share of RPCs that are traced, from `0` (none) to `1` (all). Callers cannot change it.
	SampleRatio float64 `yaml:"sample_ratio"`
}

// RenamedKeys implements [config.Renamer].
func (*Config) RenamedKeys() map[string]string {
	return map[string]string{
		"directory": "state_dir", "names": "server_names", "address": "advertise_address", "token": "hsm",
		"further_tokens": "further_hsms", "limits": "rate_limits", "traces": "tracing", "tracing.share": "tracing.sample_ratio",
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
