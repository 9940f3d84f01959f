package torture

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
)

// A credential is a certificate and its key.
type credential struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func (h *credential) serial() string { return serialOf(h.certificate) }

// serialOf returns a serial number in hexadecimal, like hex(serial) in the store.
func serialOf(c *x509.Certificate) string { return fmt.Sprintf("%040X", c.SerialNumber) }

// observations records the certificates that clients received and the changes that operators got a response for. It
// reports contradictions between them as faults.
type observations struct {
	mu           sync.Mutex
	certificates map[string]*x509.Certificate // by serial number
	byRequest    map[string][]byte            // by request ID: the certificate
	byToken      map[string]string            // by a token's secret: the serial number of the certificate it was used for
	revoked      map[string]bool              // serial numbers whose revocation was confirmed to an operator
	states       map[string]string            // by identity: the state that was confirmed last
	renewals     map[string]string            // by serial number: the serial number of its renewal
	batches      map[string]string            // by identity: its batch label
	bulkMembers  []string                     // serial numbers, known to clients, of members of confirmed bulk revocations
	faults       []string
}

func newObservations() *observations {
	return &observations{
		certificates: map[string]*x509.Certificate{}, byRequest: map[string][]byte{}, byToken: map[string]string{},
		revoked: map[string]bool{}, states: map[string]string{}, renewals: map[string]string{}, batches: map[string]string{},
	}
}

func (b *observations) faultf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault(format, args...)
}

func (b *observations) fault(format string, args ...any) {
	b.faults = append(b.faults, fmt.Sprintf(format, args...))
}

// recordIssued records the certificate that a request got.
func (b *observations) recordIssued(r *request, c *x509.Certificate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	serial := serialOf(c)
	if other, ok := b.certificates[serial]; ok && !other.Equal(c) {
		b.fault("two certificates have the serial number %s", serial)
	}
	b.certificates[serial] = c
	if other, ok := b.byRequest[string(r.id)]; ok && !bytes.Equal(other, c.Raw) {
		b.fault("the request %X got two certificates, the second one is %s", r.id, serial)
	}
	b.byRequest[string(r.id)] = c.Raw
	if r.renews != nil {
		b.renewals[r.renews.serial()] = serial
	}
	if len(r.secret) == 0 {
		return
	}
	if other, ok := b.byToken[string(r.secret)]; ok && other != serial {
		b.fault("one token was used for two certificates, %s and %s", other, serial)
	}
	b.byToken[string(r.secret)] = serial
}

// identityOf returns the SPIFFE ID in a certificate, and "" for a certificate of ACME, which has none.
func identityOf(c *x509.Certificate) string {
	if len(c.URIs) == 0 {
		return ""
	}
	return c.URIs[0].String()
}

// serialsOf returns the serial numbers that clients hold for an identity.
func (b *observations) serialsOf(identity string) []string {
	return b.serialsWhere(func(c *x509.Certificate) bool { return identityOf(c) == identity })
}

// serialsWhere returns the serial numbers of clients' certificates for which is returns true, the newest last.
func (b *observations) serialsWhere(is func(*x509.Certificate) bool) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var serials []string
	for serial, c := range b.certificates {
		if is(c) {
			serials = append(serials, serial)
		}
	}
	slices.Sort(serials)
	return serials
}

// recordBatch records the batch label of an identity.
func (b *observations) recordBatch(identity, batch string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.batches[identity] = batch
}

// serialsInBatch returns the serial numbers that devices of a batch hold, the newest last.
func (b *observations) serialsInBatch(batch string) []string {
	return b.serialsWhere(func(c *x509.Certificate) bool { return b.batches[identityOf(c)] == batch })
}

// lineage returns a serial number and those of its renewals that clients hold.
func (b *observations) lineage(serial string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var serials []string
	for ; serial != ""; serial = b.renewals[serial] {
		serials = append(serials, serial)
	}
	return serials
}

// newestBulkMembers returns up to n members of bulk revocations, those of the latest one last.
func (b *observations) newestBulkMembers(n int) []*x509.Certificate {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*x509.Certificate
	for _, serial := range b.bulkMembers[max(0, len(b.bulkMembers)-n):] {
		all = append(all, b.certificates[serial])
	}
	return all
}

// recordBulkRevoked records that the members of a bulk revocation are revoked.
func (b *observations) recordBulkRevoked(serials ...string) {
	b.recordRevoked(serials...)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bulkMembers = append(b.bulkMembers, serials...)
}

// recordRevoked records that certificates are revoked.
func (b *observations) recordRevoked(serials ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range serials {
		b.revoked[s] = true
	}
}

// recordState records the state of an identity.
func (b *observations) recordState(identity, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.states[identity] = state
}
