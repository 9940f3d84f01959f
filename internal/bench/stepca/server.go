package stepca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/file"
)

// ACMEProvisioner is the name of the provisioner for ACME, which is part of the URL of its directory.
const ACMEProvisioner = "bench-acme"

const (
	provisioner    = "bench"
	processTimeout = time.Minute            // to start, and to stop
	pollPause      = 100 * time.Millisecond // pause between two requests whether it serves
	caLifetime     = 24 * time.Hour
)

// Config says with what step-ca signs, and where it keeps its files.
type Config struct {
	Program string
	Dir     string // is made
	// Module, HSMLabel and KeyLabel name the key of the issuing CA in a PKCS#11 HSM, and Key is its public key.
	Module, HSMLabel, KeyLabel string
	Key                        crypto.PublicKey
	// Options are arguments of the program.
	Options []string
	// Process returns a process of the measurement. It gets the HSM's PIN on standard input.
	Process func(ctx context.Context, path string, args ...string) (*exec.Cmd, error)
}

// Server is a process of step-ca with its callers.
type Server struct {
	URL     string
	Roots   *x509.CertPool
	Callers []*Caller

	cmd    *exec.Cmd
	log    string // path of what it prints
	ended  chan struct{}
	key    *ecdsa.PrivateKey // of the provisioner
	tokens chan string
}

// Start starts step-ca on a free port of the loopback interface, and connects its callers.
func Start(ctx context.Context, c Config, callers int) (s *Server, err error) {
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		return nil, err
	}
	s = &Server{
		log: filepath.Join(c.Dir, "log"), ended: make(chan struct{}), Roots: x509.NewCertPool(), tokens: make(chan string, maxTokens),
	}
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if err := s.certify(c); err != nil {
		return nil, err
	}
	config, err := s.configure(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, c, config); err != nil {
		return nil, err
	}
	if err := s.connect(ctx, callers); err != nil {
		return nil, errors.Join(s.Explain(err), s.Stop())
	}
	return s, nil
}

// Process returns the process.
func (s *Server) Process() *os.Process { return s.cmd.Process }

// certify makes a root, and the certificate of the measured key.
func (s *Server) certify(c Config) error {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "step-ca Root"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(2 * caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	issuing := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "step-ca Issuing"},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for name, made := range map[string]struct {
		template *x509.Certificate
		key      any
	}{"root.crt": {root, rootKey.Public()}, "issuing.crt": {issuing, c.Key}} {
		der, err := x509.CreateCertificate(rand.Reader, made.template, root, made.key, rootKey)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := file.WriteNew(filepath.Join(c.Dir, name), text, 0o644); err != nil {
			return err
		}
		if name == "root.crt" {
			s.Roots.AppendCertsFromPEM(text)
		}
	}
	return nil
}

// configure writes the configuration file, and returns its path. Requests are not logged.
func (s *Server) configure(ctx context.Context, c Config) (path string, err error) {
	addresses, err := devca.FreeAddresses(ctx, 1)
	if err != nil {
		return "", err
	}
	s.URL = "https://" + addresses[0]
	public, err := s.key.PublicKey.Bytes() // 4, x and y
	if err != nil {
		return "", err
	}
	coordinates := public[1:]
	hsmURI := "pkcs11:module-path=" + c.Module + ";token=" + c.HSMLabel + "?pin-source=/dev/stdin" // RFC 7512
	encode := base64.RawURLEncoding.EncodeToString
	text, err := json.Marshal(map[string]any{
		"root": filepath.Join(c.Dir, "root.crt"), "crt": filepath.Join(c.Dir, "issuing.crt"),
		"kms": map[string]any{"type": "pkcs11", "uri": hsmURI}, "key": "pkcs11:object=" + c.KeyLabel,
		"address": addresses[0], "dnsNames": []string{"127.0.0.1"},
		"db": map[string]any{"type": "badgerv2", "dataSource": filepath.Join(c.Dir, "db")},
		"authority": map[string]any{"provisioners": []any{
			map[string]any{"type": "JWK", "name": provisioner, "key": map[string]string{
				"use": "sig", "kty": "EC", "kid": provisioner, "crv": "P-256", "alg": "ES256",
				"x": encode(coordinates[:len(coordinates)/2]), "y": encode(coordinates[len(coordinates)/2:]),
			}},
			map[string]any{"type": "ACME", "name": ACMEProvisioner},
		}},
	})
	if err != nil {
		return "", err
	}
	path = filepath.Join(c.Dir, "ca.json")
	return path, file.WriteNew(path, text, 0o600)
}

func (s *Server) start(ctx context.Context, c Config, config string) error {
	path, err := exec.LookPath(c.Program)
	if err != nil {
		return err
	}
	if s.cmd, err = c.Process(ctx, path, append(c.Options, config)...); err != nil {
		return err
	}
	log, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.Env = append(os.Environ(), "STEPPATH="+filepath.Dir(config))
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = s.cmd.Wait() // stop asks for the state of the process
		close(s.ended)
	}()
	return nil
}

// connect waits until step-ca serves, and makes the callers.
func (s *Server) connect(ctx context.Context, callers int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, processTimeout, errors.New("step-ca did not start in time"))
	defer cancel()
	for {
		err := s.healthy(ctx)
		if err == nil {
			break
		}
		select {
		case <-s.ended:
			return errors.New("step-ca ended during its start")
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(pollPause):
		}
	}
	if err := s.MakeTokens(0); err != nil {
		return err
	}
	for range callers {
		c, err := s.newCaller(ctx)
		if err != nil {
			return err
		}
		s.Callers = append(s.Callers, c)
	}
	return nil
}

func (s *Server) healthy(ctx context.Context) error {
	c := s.client(nil)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/health", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("step-ca responded with HTTP %s", resp.Status)
	}
	return nil
}

// Explain returns err with the end of what step-ca printed.
func (s *Server) Explain(err error) error {
	const shown = 2048 // bytes
	text, rerr := os.ReadFile(s.log)
	if err == nil || rerr != nil || len(text) == 0 {
		return err
	}
	return fmt.Errorf("%w; step-ca printed: %s", err, text[max(0, len(text)-shown):])
}

// Stop ends the process, and waits for its end.
func (s *Server) Stop() error {
	if s == nil {
		return nil
	}
	for _, c := range s.Callers {
		c.close()
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(processTimeout):
		return errors.Join(errors.New("step-ca did not stop in time and was killed"), s.cmd.Process.Kill())
	}
}
