package torture

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
)

// A holder has a certificate and its key.
type holder struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func (h *holder) serial() string { return serialOf(h.certificate) }

// serialOf is a serial number as the store's column has it, in hexadecimal.
func serialOf(c *x509.Certificate) string { return fmt.Sprintf("%040X", c.SerialNumber) }

// book is what clients hold and what operators were promised. What contradicts itself is a fault at once.
type book struct {
	mu      sync.Mutex
	held    map[string]*x509.Certificate // by serial number
	answers map[string][]byte            // by request ID: the certificate
	spent   map[string]string            // by a token's secret: the serial number that it became
	revoked map[string]bool              // serial numbers: somebody was told that these are revoked
	states  map[string]string            // of identities: what somebody was told last
	renewed map[string]string            // by serial number: that of the renewal
	batches map[string]string            // of identities
	inSets  []string                     // serial numbers: the members of answered sets, as far as somebody holds them
	faults  []string
}

func newBook() *book {
	return &book{
		held: map[string]*x509.Certificate{}, answers: map[string][]byte{}, spent: map[string]string{},
		revoked: map[string]bool{}, states: map[string]string{}, renewed: map[string]string{}, batches: map[string]string{},
	}
}

func (b *book) faultf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault(format, args...)
}

func (b *book) fault(format string, args ...any) {
	b.faults = append(b.faults, fmt.Sprintf(format, args...))
}

// answered takes down what a request got.
func (b *book) answered(r *request, c *x509.Certificate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	serial := serialOf(c)
	if other, ok := b.held[serial]; ok && !other.Equal(c) {
		b.fault("the serial number %s is that of two certificates", serial)
	}
	b.held[serial] = c
	if other, ok := b.answers[string(r.id)]; ok && !bytes.Equal(other, c.Raw) {
		b.fault("the request %X got two certificates, the second one is %s", r.id, serial)
	}
	b.answers[string(r.id)] = c.Raw
	if r.renews != nil {
		b.renewed[r.renews.serial()] = serial
	}
	if len(r.secret) == 0 {
		return
	}
	if other, ok := b.spent[string(r.secret)]; ok && other != serial {
		b.fault("one token got two certificates, %s and %s", other, serial)
	}
	b.spent[string(r.secret)] = serial
}

// of returns the serial numbers that an identity holds.
func (b *book) of(identity string) []string {
	return b.where(func(c *x509.Certificate) bool { return c.URIs[0].String() == identity })
}

// where returns the serial numbers of certificates that somebody holds, the newest last.
func (b *book) where(is func(*x509.Certificate) bool) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var serials []string
	for serial, c := range b.held {
		if is(c) {
			serials = append(serials, serial)
		}
	}
	slices.Sort(serials)
	return serials
}

// registered takes down which batch an identity is of.
func (b *book) registered(identity, batch string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.batches[identity] = batch
}

// inBatch returns the serial numbers that somebody of a batch holds, the newest last.
func (b *book) inBatch(batch string) []string {
	return b.where(func(c *x509.Certificate) bool { return b.batches[c.URIs[0].String()] == batch })
}

// lineage returns a serial number and those of its renewals, as far as somebody holds them.
func (b *book) lineage(serial string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var serials []string
	for ; serial != ""; serial = b.renewed[serial] {
		serials = append(serials, serial)
	}
	return serials
}

// newestInSets returns some members of sets, the latest orders' last.
func (b *book) newestInSets(n int) []*x509.Certificate {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*x509.Certificate
	for _, serial := range b.inSets[max(0, len(b.inSets)-n):] {
		all = append(all, b.held[serial])
	}
	return all
}

// revokedAsSet takes down that the members of a set are.
func (b *book) revokedAsSet(serials ...string) {
	b.promised(serials...)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inSets = append(b.inSets, serials...)
}

// promised takes down that certificates are revoked.
func (b *book) promised(serials ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range serials {
		b.revoked[s] = true
	}
}

// stands takes down what an identity is.
func (b *book) stands(identity, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.states[identity] = state
}
