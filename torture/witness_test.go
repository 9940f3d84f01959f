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

// What a signature is for. It is the standard library that makes the digests of both, and it is on the stack.
const (
	forCertificate byte = 'c'
	forCRL         byte = 'r'
)

const digestSize = 32 // the issuing key is on P-256, and signs SHA-256

// witness is told of every signature before the token makes it. It lives in the process that tortures.
type witness struct {
	path string

	mu           sync.Mutex
	certificates map[string]bool // digests, in hexadecimal
	crls         map[string]bool
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	dir, err := os.MkdirTemp("", "witness") // t.TempDir has the test's name in it, and a socket's path is short (unix(7))
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &witness{path: filepath.Join(dir, "socket"), certificates: map[string]bool{}, crls: map[string]bool{}}
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

// listen takes down one process's digests, and says so, until the process dies.
func (w *witness) listen(conn net.Conn) {
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

// seen returns the digests of certificates, and how many CRLs there were.
func (w *witness) seen() (certificates []string, crls int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for digest := range w.certificates {
		certificates = append(certificates, digest)
	}
	return certificates, len(w.crls)
}

// witnessedSigner has the token sign nothing that the witness does not know of.
type witnessedSigner struct {
	crypto.Signer
	steps *steps
	mu    sync.Mutex
	conn  net.Conn
}

func (s *witnessedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	what, step := forCertificate, stepSign
	if signsCRL() {
		what, step = forCRL, stepSignCRL
	}
	if err := s.tell(what, digest); err != nil {
		return nil, err
	}
	return around(s.steps, step, func() ([]byte, error) { return s.Signer.Sign(random, digest, opts) })
}

func (s *witnessedSigner) tell(what byte, digest []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.conn.Write(append([]byte{what}, digest...)); err != nil {
		return err
	}
	_, err := io.ReadFull(s.conn, make([]byte, 1))
	return err
}

func signsCRL() bool {
	stack := make([]byte, 16<<10)
	return bytes.Contains(stack[:runtime.Stack(stack, false)], []byte("crl.(*builder).sign"))
}

// short is enough of a digest or a serial number to find it.
func short(hexadecimal string) string {
	return strings.ToUpper(hexadecimal[:min(16, len(hexadecimal))])
}
