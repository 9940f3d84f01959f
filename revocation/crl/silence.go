package crl

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// maxLeaderless is how long a CA may have no leader before the server reports it. Another server with the key takes over
// in less time after the lease has ended.
const maxLeaderless = LeaseTime

// silence is what a server knows about a CA whose CRLs no server signs.
type silence struct {
	since    time.Time // when the server first saw that it has no leader, by the monotonic clock
	reported bool
	overdue  bool // whether the log has the error that the CRL was not renewed
}

// Unsigned returns the certificates of the CAs whose key this server lacks and whose CRLs no server signs now. Relying
// parties accept the last CRLs until their nextUpdate. It is empty if no other server shares the store.
func (u *Updater) Unsigned() []*x509.Certificate {
	if unsigned := u.unsigned.Load(); unsigned != nil {
		return *unsigned
	}
	return nil
}

// Awaited returns the certificates of the CAs whose key this server lacks and whose CRLs other servers sign or signed.
func (u *Updater) Awaited() []*x509.Certificate {
	if u.exchange == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(u.elsewhere), func(c *x509.Certificate) bool { return !issuesLeaves(c) })
}

// issuesLeaves reports whether a CA is an issuing CA: its path length is zero, and it is no root.
func issuesLeaves(c *x509.Certificate) bool {
	return c.MaxPathLenZero && !bytes.Equal(c.RawSubject, c.RawIssuer)
}

// observeLeaders looks for the leaders of the CAs whose keys other servers have, and logs when one has none.
func (u *Updater) observeLeaders(ctx context.Context, newest []CRL) error {
	led, err := u.exchange.Led(ctx)
	if err != nil {
		return fmt.Errorf("read which servers sign CRLs: %w", err)
	}
	var unsigned []*x509.Certificate
	for _, c := range u.Awaited() {
		id := pki.IssuerOf(c)
		n := slices.IndexFunc(newest, func(c CRL) bool { return c.Scope() == Scope{Issuer: id} })
		if slices.Contains(led, id) || n >= 0 && newest[n].Position == 0 { // an imported CRL, of which warnOfExpiry warns
			if s := u.silent[id]; s != nil && s.reported {
				u.log.Info("a server signs the CRLs of a CA again", "issuer", c.Subject)
			}
			delete(u.silent, id)
			continue
		}
		var last *CRL
		if n >= 0 {
			last = &newest[n]
		}
		if u.reportSilence(c, last) {
			unsigned = append(unsigned, c)
		}
	}
	u.unsigned.Store(&unsigned)
	return nil
}

// reportSilence logs that a CA has no leader, unless another server may still take over. It logs an error when the CRL is
// overdue. last is the newest full CRL, or nil. It reports whether the CA has had no leader for too long.
func (u *Updater) reportSilence(c *x509.Certificate, last *CRL) bool {
	id := pki.IssuerOf(c)
	s := u.silent[id]
	if s == nil {
		s = &silence{since: time.Now()}
		u.silent[id] = s
	}
	if time.Since(s.since) < maxLeaderless {
		return false
	}
	attributes := []any{"issuer", c.Subject}
	if last != nil {
		attributes = append(attributes, "next_update", last.NextUpdate)
	}
	if !s.reported {
		s.reported = true
		u.log.Warn("no server with the key of a CA runs, its CRLs are not renewed", attributes...)
	}
	if last != nil && !s.overdue && last.NextUpdate.Sub(u.clock()) <= last.NextUpdate.Sub(last.ThisUpdate)/3 {
		s.overdue = true
		u.log.Error("no server signs the CRLs of a CA, start one that has its key", attributes...)
	}
	return true
}
