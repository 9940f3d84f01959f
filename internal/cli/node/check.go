package node

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/retention"
)

// Check verifies every value without reading files or the network, and sets the defaults that depend on other values.
// It returns a [*config.Error] for the first value that does not pass.
func (c *Config) Check() error {
	for _, k := range []struct {
		key   string
		check func() error
	}{
		{"trust_domain", c.checkTrustDomain}, {"state_dir", c.checkStateDir}, {"server_names", c.checkServerNames},
		{"public_url", c.checkPublicURL},
		{"listen.grpc", func() error { return checkListen(c.Listen.GRPC) }},
		{"listen.http", func() error { return checkListen(c.Listen.HTTP) }},
		{"listen.https", func() error { return checkOptional(c.Listen.HTTPS) }}, {"https_url", c.checkHTTPSURL},
		{"listen.operations", func() error { return checkOptional(c.Listen.Operations) }},
		{"advertise_address", c.checkAdvertiseAddress}, {"store.postgres", c.Store.checkPostgres}, {"store.server", c.Store.checkServer},
		{"replica.max_staleness", func() error { return responder.CheckMaxStaleness(c.Replica.MaxStaleness) }},
		{"hsm", c.HSM.checkName},
		{"hsm.sessions", c.HSM.checkSessions}, {"further_hsms", c.checkFurtherHSMs},
		{"rate_limits.identity.per_second", admission.Rate(c.RateLimits.Identity).CheckPerSecond},
		{"rate_limits.identity.burst", admission.Rate(c.RateLimits.Identity).CheckBurst},
		{"rate_limits.address.per_second", admission.Rate(c.RateLimits.Address).CheckPerSecond},
		{"rate_limits.address.burst", admission.Rate(c.RateLimits.Address).CheckBurst},
		{"ocsp.max_age", func() error { return responder.CheckMaxAge(c.OCSP.MaxAge) }},
		{"crl.partitions", func() error { return ca.CheckPartitions(c.CRL.Partitions) }},
		{"crl.max_age", func() error { return responder.CheckMaxAge(c.CRL.MaxAge) }},
		{"est.min_tls", func() error { _, err := c.EST.version(); return err }},
		{"crl.directories", c.CRL.checkDirectories}, {"retention", c.checkRetention}, {"archive.copy", c.checkArchiveCopy},
		{"acme.resolvers", c.ACME.checkResolvers}, {"acme.networks", c.ACME.checkNetworks}, {"acme.min_tls", c.ACME.checkMinTLS},
		{"acme.http_port", func() error { return checkPort(c.ACME.HTTPPort) }},
		{"acme.tls_port", func() error { return checkPort(c.ACME.TLSPort) }},
		{"tracing.endpoint", c.Tracing.checkEndpoint}, {"tracing.sample_ratio", c.Tracing.checkSampleRatio},
	} {
		if err := k.check(); err != nil {
			return &config.Error{Key: k.key, Problem: err.Error()}
		}
	}
	return nil
}

func (c *Config) checkTrustDomain() error { return ceremony.CheckTrustDomain(c.TrustDomain) }

func (c *Config) checkStateDir() error {
	if !filepath.IsAbs(c.StateDir) {
		return fmt.Errorf("%q is not an absolute path", c.StateDir)
	}
	return nil
}

func (c *Config) checkArchiveCopy() error {
	switch {
	case c.Archive.Copy == "":
		return nil
	case !filepath.IsAbs(c.Archive.Copy):
		return fmt.Errorf("%q is not an absolute path", c.Archive.Copy)
	case filepath.Clean(c.Archive.Copy) == filepath.Clean(c.StateDir):
		return errors.New("state_dir has the archive itself: name a directory on another disk")
	default:
		return nil
	}
}

func (s StoreConfig) checkPostgres() error {
	if s.Postgres == "" {
		return nil
	}
	return postgres.CheckConnection(s.Postgres)
}

func (s StoreConfig) checkServer() error {
	switch {
	case s.Postgres == "" && s.Server != "":
		return errors.New("a server with SQLite shares its store with no other: remove the key, or set store.postgres")
	case s.Postgres != "" && !serverName.MatchString(s.Server):
		return fmt.Errorf("%q is not a name: choose lower-case letters, digits and hyphens, at most 63, that no other server of the database has", s.Server)
	default:
		return nil
	}
}

// serverName matches the names of servers, which are parts of their identities.
var serverName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (c *Config) checkServerNames() error {
	if len(c.ServerNames) == 0 {
		return errors.New("name at least one DNS name or IP address that clients reach the server by")
	}
	_, err := server.CheckNames(c.ServerNames)
	return err
}

func (c *Config) checkPublicURL() error { return pki.CheckWebURL(c.PublicURL) }

// checkOptional checks the address of a port that can be turned off.
func checkOptional(address string) error {
	if address == "" {
		return nil
	}
	return checkListen(address)
}

// checkHTTPSURL sets the default, which depends on server_names and listen.https, and checks the form.
func (c *Config) checkHTTPSURL() error {
	if c.HTTPSURL == "" {
		if c.Listen.HTTPS == "" {
			return nil
		}
		_, port, err := net.SplitHostPort(c.Listen.HTTPS)
		if err != nil {
			return err
		}
		c.HTTPSURL = "https://" + net.JoinHostPort(c.ServerNames[0], port)
	}
	u, err := url.Parse(c.HTTPSURL)
	if err != nil || c.HTTPSURL != "https://"+u.Host || u.Hostname() == "" {
		return fmt.Errorf("%q: write it like https://ca.fleet.example or https://ca.fleet.example:8443, without a path", c.HTTPSURL)
	}
	return nil
}

// checkListen checks the form of an address. It does not check whether the machine has the address.
func checkListen(address string) error {
	_, port, err := net.SplitHostPort(address)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
		return fmt.Errorf("%q is no address to listen on: write host:port, such as 127.0.0.1:7443 or :7443", address)
	}
	return nil
}

// checkAdvertiseAddress sets the default, which depends on server_names and listen.grpc, and checks the form.
func (c *Config) checkAdvertiseAddress() error {
	if c.AdvertiseAddress == "" {
		_, port, err := net.SplitHostPort(c.Listen.GRPC)
		if err != nil {
			return err
		}
		c.AdvertiseAddress = net.JoinHostPort(c.ServerNames[0], port)
	}
	return enroll.CheckServer(c.AdvertiseAddress)
}

// LookForDirectories returns an error if a CRL directory is missing, or if this account cannot write to it. `brevet
// serve --check` calls it. A running server instead retries writing CRLs to the directory.
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

func (c HSMConfig) checkName() error {
	if (c.Label == "") == (c.Serial == "") {
		return errors.New("set one of label and serial")
	}
	return nil
}

// checkFurtherHSMs checks the HSMs in further_hsms, and sets their defaults.
func (c *Config) checkFurtherHSMs() error {
	for i := range c.FurtherHSMs {
		h := &c.FurtherHSMs[i]
		h.Sessions = cmp.Or(h.Sessions, hsm.DefaultSessions)
		if err := errors.Join(h.checkName(), h.checkSessions()); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
		if h.PINFile == "" {
			return fmt.Errorf("[%d]: set pin_file: the systemd credential and the prompt are for the PIN of hsm", i)
		}
		for _, other := range append([]HSMConfig{c.HSM}, c.FurtherHSMs[:i]...) {
			if other.name() == h.name() { // the log and the metrics identify HSMs by name
				return fmt.Errorf("[%d]: there is another HSM %s: name one of them by its serial number", i, h.name())
			}
		}
	}
	return nil
}

func (c HSMConfig) checkSessions() error {
	if c.Sessions < 1 || c.Sessions > hsm.MaxSessions {
		return fmt.Errorf("%d is out of range: use 1 to %d", c.Sessions, hsm.MaxSessions)
	}
	return nil
}

// checkEndpoint refuses URLs that the trace exporter would misinterpret.
func (c TracingConfig) checkEndpoint() error {
	if c.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Path != "" || u.User != nil {
		return fmt.Errorf("%q: write it like http://127.0.0.1:4317", c.Endpoint)
	}
	return nil
}

func (c TracingConfig) checkSampleRatio() error {
	if c.SampleRatio < 0 || c.SampleRatio > 1 {
		return fmt.Errorf("%v is not between 0 and 1", c.SampleRatio)
	}
	return nil
}
