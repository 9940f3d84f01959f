package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"
)

// holder holds the pair that an Agent or a Source uses. Its methods are safe for concurrent use.
type holder struct {
	pair atomic.Pointer[Pair]

	mu       sync.Mutex
	replaced chan struct{} // closed when the next pair is put in use; nil if no watcher waits
}

// Pair returns the pair in use, or nil if there is none.
func (h *holder) Pair() *Pair { return h.pair.Load() }

// Watch calls changed with the pair in use, if there is one, and then with each pair that replaces it. It returns when
// the context ends. Calls of changed by one Watch do not overlap. If several pairs are put in use during one call,
// Watch passes only the last of them. Several Watches can run at once. They delay neither each other nor the agent.
func (h *holder) Watch(ctx context.Context, changed func(*Pair)) {
	var seen *Pair
	for ctx.Err() == nil {
		replaced := h.replacement() // before Pair, so that no pair is missed which is put in use between the calls
		if p := h.Pair(); p != seen {
			seen = p
			changed(p)
			continue
		}
		select {
		case <-ctx.Done():
		case <-replaced:
		}
	}
}

// replacement returns a channel that is closed when the next pair is put in use.
func (h *holder) replacement() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replaced == nil {
		h.replaced = make(chan struct{})
	}
	return h.replaced
}

// use puts a pair in use and wakes the watchers.
func (h *holder) use(p *Pair) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pair.Store(p)
	if h.replaced != nil {
		close(h.replaced)
		h.replaced = nil
	}
}

// Certificate returns the certificate in use with its chain and key, or nil if there is none. Callers must not change
// it.
func (h *holder) Certificate() *tls.Certificate {
	if p := h.Pair(); p != nil {
		return p.TLS()
	}
	return nil
}

// Roots returns the trust domain's roots, or nil if there is no credential. Callers must not change the pool.
func (h *holder) Roots() *x509.CertPool {
	if p := h.Pair(); p != nil {
		return p.RootPool()
	}
	return nil
}

// GetCertificate returns the certificate in use. It is meant for the field of the same name in a server's [tls.Config].
func (h *holder) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return h.certificate()
}

// GetClientCertificate returns the certificate in use. It is meant for the field of the same name in a client's
// [tls.Config].
func (h *holder) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return h.certificate()
}

func (h *holder) certificate() (*tls.Certificate, error) {
	if c := h.Certificate(); c != nil {
		return c, nil
	}
	return nil, errNotEnrolled()
}

func errNotEnrolled() error { return fmt.Errorf("%w: enroll first", ErrNoCredential) }
