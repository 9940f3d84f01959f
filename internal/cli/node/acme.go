package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/acme/validation"
)

// tls12 and tls13 are the texts of TLS versions in the configuration.
const (
	tls12 = "1.2"
	tls13 = "1.3"
)

func (c ACMEConfig) checkResolvers() error {
	_, err := validation.ParseResolvers(c.Resolvers)
	return err
}

func (c ACMEConfig) checkNetworks() error {
	_, err := validation.ParseNetworks(c.Networks)
	return err
}

func checkPort(port int) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("%d is no port: use 1 to 65535", port)
	}
	return nil
}

func (c ACMEConfig) checkMinTLS() error {
	if c.MinTLS != tls12 && c.MinTLS != tls13 {
		return fmt.Errorf("%q is not a TLS version: use 1.2 or 1.3", c.MinTLS)
	}
	return nil
}

// systemResolvers is the file that names the resolvers of the system.
const systemResolvers = "/etc/resolv.conf"

// server returns the configuration of the ACME door. Without resolvers it reads those of the system.
func (c ACMEConfig) server() (server.ACME, error) {
	resolvers, err := validation.ParseResolvers(c.Resolvers)
	if err != nil {
		return server.ACME{}, err
	}
	if len(resolvers) == 0 {
		file, err := os.Open(systemResolvers)
		if err == nil {
			defer func() { _ = file.Close() }()
			resolvers, err = validation.SystemResolvers(file)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return server.ACME{}, fmt.Errorf("read the resolvers for ACME: %w; set acme.resolvers", err)
		}
	}
	networks, err := validation.ParseNetworks(c.Networks)
	if err != nil {
		return server.ACME{}, err
	}
	version := uint16(tls.VersionTLS13)
	if c.MinTLS == tls12 {
		version = tls.VersionTLS12
	}
	return server.ACME{
		Validation: validation.Config{
			Resolvers: resolvers, Networks: networks,
			HTTPPort: uint16(c.HTTPPort), TLSPort: uint16(c.TLSPort), //nolint:gosec // checkPort has checked them
		},
		MinVersion: version,
	}, nil
}
