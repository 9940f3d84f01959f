package fleet

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
)

// renewedAfter is the share of the lifetime after which agents renew: the middle of the renewal windows.
const renewedAfter = 2.0 / 3

// eachDirectory is the number of credential directories in one directory.
const eachDirectory = 1000

// Device is a device whose agent returns after the outage.
type Device struct {
	NotAfter time.Time // of the certificate that it returns with
	RenewBy  time.Time // end of the renewal window of that certificate
}

// Overdue reports whether the agent renews its certificate at this time, or recovers it.
func (d Device) Overdue(at time.Time) bool { return !d.RenewBy.After(at) || d.NotAfter.Before(at) }

// Maker makes the credential directories of devices. Its methods are safe for concurrent use.
type Maker struct {
	Dir      string
	Server   string        // address of the server
	Like     *enroll.Pair  // a credential of the same CA
	Lifetime time.Duration // of the certificates
	Outage   time.Duration
	Return   time.Time // end of the outage

	mu      sync.Mutex
	devices map[int]Device
}

// IssuedAt returns when a certificate was issued: before the outage, at a random time since when its device had not
// renewed it.
func (m *Maker) IssuedAt() time.Time {
	age := rand.Float64() * renewedAfter * float64(m.Lifetime) //nolint:gosec // it is no secret
	return m.Return.Add(-m.Outage - time.Duration(age))
}

// directoryOf returns the credential directory of the device with the number n.
func directoryOf(dir string, n int) string {
	return filepath.Join(dir, strconv.Itoa(n/eachDirectory), strconv.Itoa(n))
}

// Keep writes the credential directory of the device with the number n, as its agent left it before the outage.
func (m *Maker) Keep(n int, certificate []byte, key *ecdsa.PrivateKey) error {
	leaf, err := x509.ParseCertificate(certificate)
	if err != nil {
		return err
	}
	serial, err := pki.SerialFromInt(leaf.SerialNumber)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	window := pki.RenewalWindowOf(serial, leaf.NotAfter)
	origin, err := json.Marshal(enroll.Origin{
		Server: m.Server, Obtained: serial.Time(), Renewal: enroll.RenewalWindow(window), BundleRevision: m.Like.Origin.BundleRevision,
	})
	if err != nil {
		return err
	}
	dir := directoryOf(m.Dir, n)
	version := filepath.Join(dir, "gen-1")
	if err := os.MkdirAll(version, 0o700); err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"key.pem": pemOf("PRIVATE KEY", private), "cert.pem": append(pemOf("CERTIFICATE", certificate), certificates(m.Like.Chain)...),
		"bundle.pem": certificates(m.Like.Roots), "origin.json": origin,
	} {
		if err := os.WriteFile(filepath.Join(version, name), text, 0o600); err != nil {
			return err
		}
	}
	if err := os.Symlink("gen-1", filepath.Join(dir, "current")); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.devices == nil {
		m.devices = map[int]Device{}
	}
	m.devices[n] = Device{leaf.NotAfter, window.End}
	return nil
}

// Devices returns the devices that have a directory, by number.
func (m *Maker) Devices() map[int]Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.devices
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func certificates(chain []*x509.Certificate) (text []byte) {
	for _, c := range chain {
		text = append(text, pemOf("CERTIFICATE", c.Raw)...)
	}
	return text
}
