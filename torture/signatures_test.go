package torture

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// The kinds of signatures. signsCRL distinguishes them by the call stack, because a digest does not show its kind.
const (
	forCertificate byte = 'c'
	forCRL         byte = 'r'
)

const digestSize = 32 // the issuing key is on P-256, and signs SHA-256

// A signatureLog records every signature before the HSM makes it. It belongs to the test process, because the server is
// killed.
type signatureLog struct {
	path string

	mu           sync.Mutex
	certificates map[string]bool // digests in hexadecimal
	crls         map[string]bool
}

func newSignatureLog(t *testing.T) *signatureLog {
	t.Helper()
	dir, err := os.MkdirTemp("", "signatures") // the path of t.TempDir is too long for a socket (unix(7))
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &signatureLog{path: filepath.Join(dir, "socket"), certificates: map[string]bool{}, crls: map[string]bool{}}
	l, err := net.Listen("unix", w.path)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go w.listen(conn)
		}
	}()
	return w
}

// listen records the digests that one server process sends, and acknowledges each, until the process ends.
func (w *signatureLog) listen(conn net.Conn) {
	defer conn.Close()
	var message [1 + digestSize]byte
	for {
		if _, err := io.ReadFull(conn, message[:]); err != nil {
			return
		}
		w.mu.Lock()
		if digest := hex.EncodeToString(message[1:]); message[0] == forCRL {
			w.crls[digest] = true
		} else {
			w.certificates[digest] = true
		}
		w.mu.Unlock()
		if _, err := conn.Write(message[:1]); err != nil {
			return
		}
	}
}

// all returns the digests of certificates, and the number of CRLs.
func (w *signatureLog) all() (certificates []string, crls int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for digest := range w.certificates {
		certificates = append(certificates, digest)
	}
	return certificates, len(w.crls)
}

// A recordingSigner signs only digests that the signatureLog has recorded.
type recordingSigner struct {
	crypto.Signer
	steps *stepCounter
	mu    sync.Mutex
	conn  net.Conn
}

func (s *recordingSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	kind, step := forCertificate, stepSign
	if signsCRL() {
		kind, step = forCRL, stepSignCRL
	}
	if err := s.report(kind, digest); err != nil {
		return nil, err
	}
	return around(s.steps, step, func() ([]byte, error) { return s.Signer.Sign(random, digest, opts) })
}

func (s *recordingSigner) report(kind byte, digest []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.conn.Write(append([]byte{kind}, digest...)); err != nil {
		return err
	}
	_, err := io.ReadFull(s.conn, make([]byte, 1))
	return err
}

// signsCRL reports whether the current signature is for a CRL.
func signsCRL() bool {
	stack := make([]byte, 16<<10)
	return bytes.Contains(stack[:runtime.Stack(stack, false)], []byte("crl.(*builder).sign"))
}

// abbreviate returns the first 16 digits of a digest or serial number.
func abbreviate(hexadecimal string) string {
	return strings.ToUpper(hexadecimal[:min(16, len(hexadecimal))])
}
