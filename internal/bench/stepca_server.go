package bench

import (
	"context"
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
	"github.com/brevet-pki/brevet/internal/cli/node"
)

const (
	stepCAProvisioner = "bench"
	stepCAACME        = "bench-acme"           // the provisioner for ACME
	stepCAStart       = time.Minute            // to start, and to stop
	stepCAPoll        = 100 * time.Millisecond // pause between two requests whether it serves
	stepCACertTime    = 24 * time.Hour
)

// stepCA is a process of step-ca with its callers.
type stepCA struct {
	cmd     *exec.Cmd
	log     string // path of what it prints
	ended   chan struct{}
	base    string // URL
	roots   *x509.CertPool
	key     *ecdsa.PrivateKey // of the provisioner
	tokens  chan string
	callers []*stepCACaller
}

// startStepCA starts step-ca with the measured key on a free port of the loopback interface, and connects its callers. The
// options are arguments of the program.
func (b *bench) startStepCA(ctx context.Context, program string, callers int, options ...string) (s *stepCA, err error) {
	b.logf("starting step-ca")
	dir := filepath.Join(b.dir, "step-ca")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	s = &stepCA{
		log: filepath.Join(dir, "log"), ended: make(chan struct{}), roots: x509.NewCertPool(), tokens: make(chan string, maxTokens),
	}
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if err := s.certify(b, dir); err != nil {
		return nil, err
	}
	config, err := s.configure(ctx, b, dir)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, b, program, config, options); err != nil {
		return nil, err
	}
	if err := s.connect(ctx, callers); err != nil {
		return nil, errors.Join(s.explain(err), s.stop())
	}
	return s, nil
}

// certify makes a root, and the certificate of the measured key.
func (s *stepCA) certify(b *bench, dir string) error {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "step-ca Root"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(2 * stepCACertTime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	issuing := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "step-ca Issuing"},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for name, c := range map[string]struct {
		template *x509.Certificate
		key      any
	}{"root.crt": {root, rootKey.Public()}, "issuing.crt": {issuing, b.key.Public()}} {
		der, err := x509.CreateCertificate(rand.Reader, c.template, root, c.key, rootKey)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := file.WriteNew(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
		if name == "root.crt" {
			s.roots.AppendCertsFromPEM(text)
		}
	}
	return nil
}

// configure writes the configuration file, and returns its path. Requests are not logged.
func (s *stepCA) configure(ctx context.Context, b *bench, dir string) (path string, err error) {
	addresses, err := devca.FreeAddresses(ctx, 1)
	if err != nil {
		return "", err
	}
	s.base = "https://" + addresses[0]
	module, err := node.Module(b.like.HSM.Module)
	if err != nil {
		return "", err
	}
	public, err := s.key.PublicKey.Bytes() // 4, x and y
	if err != nil {
		return "", err
	}
	coordinates := public[1:]
	hsmURI := "pkcs11:module-path=" + module + ";token=" + hsmLabel + "?pin-source=/dev/stdin" // RFC 7512
	encode := base64.RawURLEncoding.EncodeToString
	text, err := json.Marshal(map[string]any{
		"root": filepath.Join(dir, "root.crt"), "crt": filepath.Join(dir, "issuing.crt"),
		"kms": map[string]any{"type": "pkcs11", "uri": hsmURI}, "key": "pkcs11:object=" + b.key.Label(),
		"address": addresses[0], "dnsNames": []string{"127.0.0.1"},
		"db": map[string]any{"type": "badgerv2", "dataSource": filepath.Join(dir, "db")},
		"authority": map[string]any{"provisioners": []any{
			map[string]any{"type": "JWK", "name": stepCAProvisioner, "key": map[string]string{
				"use": "sig", "kty": "EC", "kid": stepCAProvisioner, "crv": "P-256", "alg": "ES256",
				"x": encode(coordinates[:len(coordinates)/2]), "y": encode(coordinates[len(coordinates)/2:]),
			}},
			map[string]any{"type": "ACME", "name": stepCAACME},
		}},
	})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "ca.json")
	return path, file.WriteNew(path, text, 0o600)
}

func (s *stepCA) start(ctx context.Context, b *bench, program, config string, options []string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return err
	}
	if s.cmd, err = b.program(ctx, path, append(options, config)...); err != nil {
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
func (s *stepCA) connect(ctx context.Context, callers int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stepCAStart, errors.New("step-ca did not start in time"))
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
		case <-time.After(stepCAPoll):
		}
	}
	if err := s.makeTokens(0); err != nil {
		return err
	}
	for range callers {
		c, err := s.newCaller(ctx)
		if err != nil {
			return err
		}
		s.callers = append(s.callers, c)
	}
	return nil
}

func (s *stepCA) healthy(ctx context.Context) error {
	c := s.client(nil)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/health", http.NoBody)
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

// explain returns err with the end of what step-ca printed.
func (s *stepCA) explain(err error) error {
	const shown = 2048 // bytes
	text, rerr := os.ReadFile(s.log)
	if err == nil || rerr != nil || len(text) == 0 {
		return err
	}
	return fmt.Errorf("%w; step-ca printed: %s", err, text[max(0, len(text)-shown):])
}

// stop ends the process, and waits for its end.
func (s *stepCA) stop() error {
	if s == nil {
		return nil
	}
	for _, c := range s.callers {
		c.close()
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(stepCAStart):
		return errors.Join(errors.New("step-ca did not stop in time and was killed"), s.cmd.Process.Kill())
	}
}
