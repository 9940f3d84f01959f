package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/cmd/internal/config"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
)

// Config is the server's configuration file.
type Config struct {
	// TrustDomain is the SPIFFE trust domain, such as fleet.example.
	TrustDomain string `yaml:"trust_domain"`
	// Directory keeps the store, the log's archive and the server's own credentials.
	Directory string `yaml:"directory"`
	// Names are the DNS names and IP addresses that clients reach the server by.
	Names []string `yaml:"names"`
	// Address is where enrollment tokens send agents (default: the first name, with the port of listen.grpc).
	Address string `yaml:"address"`
	// PublicURL is where relying parties reach listen.http; it goes into certificates, so it cannot change for those
	// already out.
	PublicURL string       `yaml:"public_url"`
	Listen    ListenConfig `yaml:"listen"`
	Token     TokenConfig  `yaml:"token"`
	// Profiles adds profiles, or takes the place of default ones with the same name.
	Profiles map[string]ca.ProfileConfig `yaml:"profiles"`
	Log      LogConfig                   `yaml:"log"`
}

// ListenConfig says where the server listens.
type ListenConfig struct {
	GRPC string `yaml:"grpc"` // default :7443
	HTTP string `yaml:"http"` // default :7080
	// Operations serves metrics (/metrics), liveness (/livez) and readiness (/readyz), unencrypted and for anybody who
	// reaches it (default 127.0.0.1:7090).
	Operations string `yaml:"operations"`
}

// TokenConfig says where the issuing keys are.
type TokenConfig struct {
	// Module is the PKCS#11 library (default: SoftHSM, where the system keeps it).
	Module string `yaml:"module"`
	// Label or Serial names the token.
	Label  string `yaml:"label"`
	Serial string `yaml:"serial"`
	// PINFile holds the PIN, readable by the server alone (default: the systemd credential "pin").
	PINFile string `yaml:"pin_file"`
	// Sessions is how many signatures may be in the token at once.
	Sessions int `yaml:"sessions"`
}

// LogConfig says how the process logs.
type LogConfig struct {
	Format string `yaml:"format"` // text or json
	Level  string `yaml:"level"`  // debug, info, warn or error
}

func configFlag(cmd *cobra.Command) {
	cmd.Flags().String("config", "", "configuration file (default: brevet.yaml here or in /etc/brevet)")
}

// loadConfig finds the configuration file with viper, decodes it strictly, and checks what can be checked without
// touching anything.
func loadConfig(cmd *cobra.Command) (Config, error) {
	path, err := cmd.Flags().GetString("config")
	if err != nil {
		return Config{}, err
	}
	v := viper.New()
	if path != "" {
		v.SetConfigFile(path)
		v.SetConfigType("yaml")
	} else {
		v.SetConfigName("brevet")
		v.SetConfigType("yaml")
		v.AddConfigPath(".")
		v.AddConfigPath("/etc/brevet")
	}
	var parse viper.ConfigParseError
	if err := v.ReadInConfig(); err != nil && !errors.As(err, &parse) {
		return Config{}, fmt.Errorf("no configuration: %w; name it with --config", err)
	}
	return readConfig(v.ConfigFileUsed())
}

// readConfig decodes a configuration file; a syntax error names its line.
func readConfig(path string) (Config, error) {
	c := Config{Listen: ListenConfig{GRPC: ":7443", HTTP: ":7080", Operations: "127.0.0.1:7090"}, Log: LogConfig{Format: "text", Level: "info"}}
	err := config.Load(path, &c)
	var wrong *config.Error
	if errors.As(err, &wrong) {
		return c, &usage{wrong.Error()}
	}
	if err != nil {
		return c, err
	}
	if err := c.check(); err != nil {
		return c, &usage{path + ": " + err.Error()}
	}
	return c, nil
}

func (c *Config) check() error {
	if _, err := pki.ParseTrustDomain(c.TrustDomain); err != nil {
		return fmt.Errorf("trust_domain: %w", err)
	}
	if !filepath.IsAbs(c.Directory) {
		return fmt.Errorf("directory: %q is not an absolute path", c.Directory)
	}
	if len(c.Names) == 0 {
		return errors.New("names: name at least one DNS name or IP address that clients reach the server by")
	}
	u, err := url.Parse(c.PublicURL)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return fmt.Errorf("public_url: %q is not an http:// URL", c.PublicURL)
	}
	_, port, err := net.SplitHostPort(c.Listen.GRPC)
	if err != nil {
		return fmt.Errorf("listen.grpc: %w", err)
	}
	if _, _, err := net.SplitHostPort(c.Listen.HTTP); err != nil {
		return fmt.Errorf("listen.http: %w", err)
	}
	if c.Listen.Operations != "" {
		if _, _, err := net.SplitHostPort(c.Listen.Operations); err != nil {
			return fmt.Errorf("listen.operations: %w", err)
		}
	}
	if c.Address == "" {
		c.Address = net.JoinHostPort(c.Names[0], port)
	}
	if (c.Token.Label == "") == (c.Token.Serial == "") {
		return errors.New("token: set one of label and serial")
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

// logger writes to standard error, as the configuration says.
func (c *Config) logger(cmd *cobra.Command) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		return nil, &usage{fmt.Sprintf("log.level: %q: use debug, info, warn or error", c.Log.Level)}
	}
	opts := &slog.HandlerOptions{Level: level}
	switch c.Log.Format {
	case "text":
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), opts)), nil
	}
	return nil, &usage{fmt.Sprintf("log.format: %q: use text or json", c.Log.Format)}
}

// module returns the PKCS#11 library of a configuration or flag, or SoftHSM's.
func module(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	return hsm.FindSoftHSM()
}
