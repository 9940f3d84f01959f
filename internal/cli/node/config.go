package node

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/store/retention"
)

// Config is the server's configuration file. What is said about its fields is the reference in docs/configuration.md.
type Config struct {
	// Required. The SPIFFE trust domain that every identity is in: a host name in lower case, such as `fleet.example`. If
	// the issuing CA is constrained, its certificate has to permit it.
	TrustDomain string `yaml:"trust_domain"`
	// Required. An absolute path, such as `/var/lib/brevet`. There are `store.db`, `log.archive`, `crls/`, the
	// CRLs that are published, and `own/`, the server's own credentials. It is for the server's account alone, of mode 0700; `brevet ceremony install` makes it.
	Directory string `yaml:"directory"`
	// Required. DNS names and IP addresses that clients reach the server by, at least one, such as
	// `[ca.fleet.example, 192.0.2.10]`. They go into the server's own certificate; no wildcards.
	Names []string `yaml:"names"`
	// Where enrollment tokens send agents, as `host:port`. Left out, it is the first of `names`, with the port of
	// `listen.grpc`. Set it where agents come through another port, such as that of a load balancer.
	Address string `yaml:"address"`
	// Required. Where relying parties reach `listen.http`, such as `http://pki.fleet.example`: http, for a TLS certificate
	// there would itself have to be looked up there. It goes into certificates, and those that are out keep the old one.
	PublicURL string `yaml:"public_url"`
	// Where the server listens.
	Listen ListenConfig `yaml:"listen"`
	// The PKCS#11 token that holds the issuing keys.
	Token TokenConfig `yaml:"token"`
	// Further PKCS#11 tokens with issuing keys, such as that of an earlier CA generation: a list of the same keys as those of
	// `token`, such as `[{label: old, pin_file: /etc/brevet/old.pin}]`. The key of each installed CA is looked for in `token`
	// first, and then in these. `pin_file` is required here. If one of them is not available when the server starts, the
	// server warns, and answers for the CAs with a key there from what is left, until it is started again.
	FurtherTokens []TokenConfig `yaml:"further_tokens"`
	// What certificates say, by the name of the profile. These come beside the default profiles, which are below; one with
	// a default profile's name takes its place, whole. An identity has the profile named like its kind, unless
	// `brevet identity create --profile` says another.
	Profiles map[string]ca.ProfileConfig `yaml:"profiles"`
	// How often callers may call. What is above that is refused as `server.rate_limited`, with the time to come back at.
	Limits LimitsConfig `yaml:"limits"`
	// What relying parties are answered when they ask for the status of a certificate.
	OCSP OCSPConfig `yaml:"ocsp"`
	// The certificate revocation lists that relying parties fetch, and where they are published beside `listen.http`.
	CRL CRLConfig `yaml:"crl"`
	// How long records stay in the store after the end of what they are about, at least `2d`: certificates with their
	// request IDs, tokens, and keys that no certificate has any more. Until then `brevet cert` shows them and a repeated
	// request is answered with them; after that the log alone has them. It has to be longer than the clock could be ahead
	// without anybody noticing.
	Retention time.Duration `yaml:"retention"`
	// How the server logs, to standard error.
	Log LogConfig `yaml:"log"`
	// OpenTelemetry traces of gRPC calls and of the steps of issuing. Without an endpoint there are none.
	Traces TracesConfig `yaml:"traces"`
}

// ListenConfig says where the server listens.
type ListenConfig struct {
	// The address of gRPC, for devices, workloads and operators, over mutual TLS: `host:port`, or `:port` for every
	// address of the machine. The port is 1 to 65535.
	GRPC string `yaml:"grpc"`
	// The address of OCSP, CRLs and CA certificates, for relying parties, unencrypted: `host:port` or `:port`.
	HTTP string `yaml:"http"`
	// The address of metrics (`/metrics`), liveness (`/livez`) and readiness (`/readyz`), unencrypted and for anybody who
	// reaches it: `host:port` or `:port`, or `""` for none.
	Operations string `yaml:"operations"`
}

// TokenConfig says where the issuing keys are.
type TokenConfig struct {
	// The path of the PKCS#11 library, such as `/usr/lib/softhsm/libsofthsm2.so`. Left out, it is SoftHSM, where the
	// system keeps it.
	Module string `yaml:"module"`
	// The token, by its label. One of this and `token.serial` is required, and not both.
	Label string `yaml:"label"`
	// The token, by its serial number, where two have one label. One of this and `token.label` is required, and not both.
	Serial string `yaml:"serial"`
	// The file with the PIN, of mode 0600, or 0640 for the service's group. Left out, it is the systemd credential
	// `pin`, and where there is none, the terminal asks.
	PINFile string `yaml:"pin_file"`
	// How many signatures may be in the token at once, 1 to 256. More than the token can work on at once gains nothing;
	// `brevet-bench token` measures it.
	Sessions int `yaml:"sessions"`
}

// LimitsConfig says how often callers may call.
type LimitsConfig struct {
	// Each identity, by the key that it calls with: devices, workloads and operators. An operator's calls to revoke,
	// suspend, resume and retire, and to import CRLs, are not held back by it.
	Identity RateConfig `yaml:"identity"`
	// All callers together that have no certificate and one address: who enrolls, and who is refused. Hosts behind one
	// gateway have one address; of IPv6 addresses the first 64 bits count. Raise it where many devices enroll from one place.
	Address RateConfig `yaml:"address"`
}

// RateConfig is how often a source may call.
type RateConfig struct {
	// Calls a second in the long run, `0.01` to `1000000`.
	PerSecond float64 `yaml:"per_second"`
	// Calls at once, after it has been quiet, `1` to `1000000`.
	Burst int `yaml:"burst"`
}

// OCSPConfig says how relying parties are answered.
type OCSPConfig struct {
	// How long caches may keep an answer, `1s` to `1h`: that long after a revocation some relying parties behind a cache still
	// see `good`. Answers end (`nextUpdate`) after five minutes, or after twice this where that is longer; what staples
	// them may show them so long. When the server has not heard from its store for that time, it says `tryLater`.
	MaxAge time.Duration `yaml:"max_age"`
	// Whether a certificate that was never issued is called `revoked`, on hold since 1970, and not `unknown` (RFC 6960
	// section 2.2): for relying parties that accept a certificate whose status is unknown. The same is then said of
	// certificates that ended more than an hour ago, which the server has forgotten.
	ExtendedRevoke bool `yaml:"extended_revoke"`
}

// CRLConfig says what CRLs there are, and where they are published.
type CRLConfig struct {
	// How many partitions the CRL of each issuing CA has beside the whole one, 1 to 1024. Certificates of profiles with
	// `{partition}` in their `crl_url` are spread over them, so that a relying party fetches one part and not all. Another
	// number holds for what is issued from then on: certificates keep the partition that they name.
	Partitions int `yaml:"partitions"`
	// Directories that get every CRL too, for another web server or as the origin of a CDN: absolute paths, such as
	// `[/srv/www/crl]`. They have to exist and to be writable for the server. The files have the paths that they have below
	// `/crl/` of `listen.http`, and others may read them. Full CRLs are there in PEM too, as `ISSUER.crl.pem`, and those of
	// all CAs in one file, `chain.crl.pem`, which nginx and mosquitto take. Several servers may publish to one directory: of two CRLs of one
	// path, the one with the higher number stays.
	Directories []string `yaml:"directories"`
	// How long caches may keep a CRL from `listen.http` before they ask whether there is a newer one, `1s` to `1h`, and never
	// beyond its nextUpdate: that long after a revocation some relying parties behind a cache fetch the CRL without it.
	MaxAge time.Duration `yaml:"max_age"`
}

// LogConfig says how the process logs.
type LogConfig struct {
	// `text` or `json`.
	Format config.LogFormat `yaml:"format"`
	// The least that is logged: `debug`, `info`, `warn` or `error`.
	Level config.LogLevel `yaml:"level"`
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	limits := server.DefaultLimits()
	return Config{
		Limits: LimitsConfig{Identity: RateConfig(limits.Identity), Address: RateConfig(limits.Address)},
		Listen: ListenConfig{GRPC: ":7443", HTTP: ":7080", Operations: "127.0.0.1:7090"},
		Token:  TokenConfig{Sessions: hsm.DefaultSessions},
		OCSP:   OCSPConfig{MaxAge: responder.DefaultMaxAge},
		CRL:    CRLConfig{Partitions: ca.DefaultPartitions, MaxAge: responder.DefaultCRLMaxAge},
		Log:    LogConfig{Format: config.LogText}, Retention: retention.Default,
		Traces: TracesConfig{Share: 1},
	}
}

// TracesConfig says where OpenTelemetry traces go.
type TracesConfig struct {
	// The URL of a collector that takes OTLP over gRPC, with host and port: `http://127.0.0.1:4317` in clear, or
	// `https://collector.example:4317` with TLS and the system's roots. Left out, there are no traces.
	Endpoint string `yaml:"endpoint"`
	// How many of the calls are traced, from `0`, none, to `1`, all of them. Callers have no say in it.
	Share float64 `yaml:"share"`
}

// checkEndpoint refuses what the exporter would take for something else, or connect to only later.
func (c TracesConfig) checkEndpoint() error {
	if c.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Path != "" || u.User != nil {
		return fmt.Errorf("%q: write it like http://127.0.0.1:4317", c.Endpoint)
	}
	return nil
}

func (c TracesConfig) checkShare() error {
	if c.Share < 0 || c.Share > 1 {
		return fmt.Errorf("%v is not between 0 and 1", c.Share)
	}
	return nil
}

// ConfigFlag adds --config, which [LoadConfig] reads.
func ConfigFlag(cmd *cobra.Command) {
	cmd.Flags().String("config", "", "configuration file (default: brevet.yaml here or in /etc/brevet)")
}

// defaultConfigPaths are the files that configure a command without --config. The first one that exists counts.
var defaultConfigPaths = [...]string{"brevet.yaml", "/etc/brevet/brevet.yaml"}

// LoadConfig finds the configuration file, decodes it strictly, and checks what can be checked without touching
// anything.
func LoadConfig(cmd *cobra.Command) (Config, error) {
	path, err := cmd.Flags().GetString("config")
	if err != nil {
		return Config{}, err
	}
	if path, err = findConfig(path); err != nil {
		return Config{}, err
	}
	return ReadConfig(path)
}

// findConfig returns the named configuration file, or the first default one, if viper can read it. Viper gets whole
// paths: a search by name takes any file that is called brevet, with any extension or none, for the configuration.
func findConfig(named string) (string, error) {
	paths := defaultConfigPaths[:]
	if named != "" {
		paths = []string{named}
	}
	for _, path := range paths {
		v := viper.New()
		v.SetConfigFile(path)
		v.SetConfigType("yaml")
		err := v.ReadInConfig()
		var parse viper.ConfigParseError
		switch {
		case err == nil, errors.As(err, &parse): // a syntax error is told with its line, by ReadConfig
			return path, nil
		case named == "" && errors.Is(err, fs.ErrNotExist):
			continue
		}
		return "", fmt.Errorf("no configuration: %w; name it with --config", err)
	}
	return "", fmt.Errorf("no configuration: there is no %s; write one of them, or name another with --config", strings.Join(paths, " and no "))
}

// ReadConfig decodes a configuration file; a syntax error names its line.
func ReadConfig(path string) (Config, error) {
	c := DefaultConfig()
	err := config.Load(path, &c)
	var wrong *config.Error
	if errors.As(err, &wrong) {
		return c, cli.WrongArgument(wrong)
	}
	if err != nil {
		return c, err
	}
	if err := c.Check(); err != nil {
		return c, cli.WrongFlag(path, err)
	}
	return c, nil
}

// Check looks at every value, and sets what follows from others. Errors begin with the key.
func (c *Config) Check() error {
	for _, k := range []struct {
		key   string
		check func() error
	}{
		{"trust_domain", c.checkTrustDomain}, {"directory", c.checkDirectory}, {"names", c.checkNames}, {"public_url", c.checkPublicURL},
		{"listen.grpc", func() error { return checkListen(c.Listen.GRPC) }},
		{"listen.http", func() error { return checkListen(c.Listen.HTTP) }},
		{"listen.operations", c.checkOperations}, {"address", c.checkAddress}, {"token", c.Token.checkName},
		{"token.sessions", c.Token.checkSessions}, {"further_tokens", c.checkFurtherTokens},
		{"limits.identity.per_second", admission.Rate(c.Limits.Identity).CheckPerSecond},
		{"limits.identity.burst", admission.Rate(c.Limits.Identity).CheckBurst},
		{"limits.address.per_second", admission.Rate(c.Limits.Address).CheckPerSecond},
		{"limits.address.burst", admission.Rate(c.Limits.Address).CheckBurst},
		{"ocsp.max_age", func() error { return responder.CheckMaxAge(c.OCSP.MaxAge) }},
		{"crl.partitions", func() error { return ca.CheckPartitions(c.CRL.Partitions) }},
		{"crl.max_age", func() error { return responder.CheckMaxAge(c.CRL.MaxAge) }},
		{"crl.directories", c.CRL.checkDirectories}, {"retention", c.checkRetention},
		{"traces.endpoint", c.Traces.checkEndpoint}, {"traces.share", c.Traces.checkShare},
	} {
		if err := k.check(); err != nil {
			return fmt.Errorf("%s: %w", k.key, err)
		}
	}
	_, err := c.profiles()
	return err
}

func (c *Config) checkTrustDomain() error { return ceremony.CheckTrustDomain(c.TrustDomain) }

func (c *Config) checkDirectory() error {
	if !filepath.IsAbs(c.Directory) {
		return fmt.Errorf("%q is not an absolute path", c.Directory)
	}
	return nil
}

func (c *Config) checkNames() error {
	if len(c.Names) == 0 {
		return errors.New("name at least one DNS name or IP address that clients reach the server by")
	}
	_, err := server.CheckNames(c.Names)
	return err
}

func (c *Config) checkPublicURL() error { return pki.CheckWebURL(c.PublicURL) }

func (c *Config) checkOperations() error {
	if c.Listen.Operations == "" {
		return nil
	}
	return checkListen(c.Listen.Operations)
}

// checkListen looks at the form; whether the address is this machine's shows when it is listened on.
func checkListen(address string) error {
	_, port, err := net.SplitHostPort(address)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
		return fmt.Errorf("%q is no address to listen on: write host:port, such as 127.0.0.1:7443 or :7443", address)
	}
	return nil
}

// checkAddress comes after names and listen.grpc, which it takes its default from.
func (c *Config) checkAddress() error {
	if c.Address == "" {
		_, port, err := net.SplitHostPort(c.Listen.GRPC)
		if err != nil {
			return err
		}
		c.Address = net.JoinHostPort(c.Names[0], port)
	}
	return enroll.CheckServer(c.Address)
}

// LookForDirectories looks whether the directories are there, and this account's to write to. A server tries until they are.
func (c CRLConfig) LookForDirectories() error {
	for _, path := range c.Directories {
		if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("crl.directories: %s: %w: make this directory, or mount it, for this account to write to", path, err)
		}
	}
	return nil
}

func (c CRLConfig) checkDirectories() error {
	for i, path := range c.Directories {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q is not an absolute path", path)
		}
		if slices.Contains(c.Directories[:i], path) {
			return fmt.Errorf("%q is there twice", path)
		}
	}
	return nil
}

func (c *Config) checkRetention() error {
	if c.Retention < retention.Minimum {
		return fmt.Errorf("%v is too short: keep records for %v at least", c.Retention, retention.Minimum)
	}
	return nil
}

func (c TokenConfig) checkName() error {
	if (c.Label == "") == (c.Serial == "") {
		return errors.New("set one of label and serial")
	}
	return nil
}

// checkFurtherTokens looks at the tokens beside c.Token, and sets what they leave out.
func (c *Config) checkFurtherTokens() error {
	for i := range c.FurtherTokens {
		t := &c.FurtherTokens[i]
		t.Sessions = cmp.Or(t.Sessions, hsm.DefaultSessions)
		if err := errors.Join(t.checkName(), t.checkSessions()); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
		if t.PINFile == "" {
			return fmt.Errorf("[%d]: set pin_file: the systemd credential and the terminal give the PIN of token alone", i)
		}
		for _, other := range append([]TokenConfig{c.Token}, c.FurtherTokens[:i]...) {
			if other.name() == t.name() { // which log and metrics tell tokens apart by
				return fmt.Errorf("[%d]: there is another token %s: name one of them by its serial number", i, t.name())
			}
		}
	}
	return nil
}

func (c TokenConfig) checkSessions() error {
	if c.Sessions < 1 || c.Sessions > hsm.MaxSessions {
		return fmt.Errorf("%d is out of range: use 1 to %d", c.Sessions, hsm.MaxSessions)
	}
	return nil
}

// profiles returns the default profiles with the configuration's own in their place or beside them.
func (c *Config) profiles() (map[string]*ca.Profile, error) {
	all, err := ca.DefaultProfiles()
	if err != nil {
		return nil, err
	}
	maps.Copy(all, c.Profiles)
	profiles := make(map[string]*ca.Profile, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p, err := ca.NewProfile(name, all[name], c.PublicURL)
		if err != nil {
			return nil, err
		}
		profiles[name] = p
	}
	return profiles, nil
}

// PIN reads the token's PIN from where the configuration says.
func (c *Config) PIN() (hsm.PIN, error) {
	pin, err := ReadPIN(c.Token.PINFile)
	if err != nil {
		return pin, fmt.Errorf("token.pin_file: %w", err)
	}
	return pin, nil
}

// Logger writes to standard error, as the configuration says.
func (c *Config) Logger(cmd *cobra.Command) *slog.Logger {
	return c.Log.Format.Logger(cmd.ErrOrStderr(), c.Log.Level)
}

// Module returns the PKCS#11 library of a configuration or flag, or SoftHSM's.
func Module(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	return hsm.FindSoftHSM()
}
