package revocation

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// signedBy is who records the CRLs that an Authority signs.
var signedBy = pki.ActorSystem("revocation")

// PublishNow signs and publishes a new CRL of every issuer. It tries all of them, and returns what failed.
func (a *Authority) PublishNow(ctx context.Context) error {
	var failed []error
	for _, i := range a.issuers {
		failed = append(failed, a.publishNew(ctx, i))
	}
	return errors.Join(failed...)
}

// publishNew makes the next CRL of an issuer, in the order that a crash at any point must find: the number is durably
// taken, then used for one signature, then the CRL is durable, then it is out.
func (a *Authority) publishNew(ctx context.Context, i *issuer) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	// 1. A number that no CRL of this issuer has had, or will have again (RFC 5280 §5.2.3).
	number, err := a.records.TakeNumber(ctx, i.id)
	if err != nil {
		return fmt.Errorf("revocation: take a CRL number for %s: %w", i.Certificate.Subject, err)
	}
	// 2. What is revoked, and a signature over it.
	crl, err := a.sign(ctx, i, number)
	if err != nil {
		return fmt.Errorf("revocation: sign CRL %v of %s: %w", number, i.Certificate.Subject, err)
	}
	// 3. The record, which refuses a number below another process's.
	if err := a.records.PutCRL(ctx, crl, signedBy, a.now()); err != nil {
		return fmt.Errorf("revocation: record CRL %v of %s: %w", number, i.Certificate.Subject, err)
	}
	i.last = crl
	// 4. Out to the relying parties.
	if err := a.publisher.PublishCRL(crl); err != nil {
		return fmt.Errorf("revocation: publish CRL %v of %s: %w", number, i.Certificate.Subject, err)
	}
	return nil
}

// sign makes the full CRL of what is revoked now. The issuer's mutex is held.
func (a *Authority) sign(ctx context.Context, i *issuer, number *big.Int) (CRL, error) {
	crl := CRL{Issuer: i.id, Number: number, ThisUpdate: a.now()}
	crl.NextUpdate = crl.ThisUpdate.Add(a.lifetime)
	// What has expired since the last CRL is in this one once more: an entry stays until a CRL was issued beyond the
	// certificate's validity (RFC 5280 §3.3).
	notExpiredAt := crl.ThisUpdate
	if last := i.last.ThisUpdate; !last.IsZero() && last.Before(notExpiredAt) {
		notExpiredAt = last
	}
	var entries []x509.RevocationListEntry
	for e, err := range a.records.Revoked(ctx, i.id, notExpiredAt) {
		if err != nil {
			return CRL{}, fmt.Errorf("read what is revoked: %w", err)
		}
		at := e.RevokedAt.UTC().Truncate(time.Second)
		if at.After(crl.ThisUpdate) {
			at = crl.ThisUpdate // the clock was set back since, and nobody shall take it for yet to come
		}
		entries = append(entries, x509.RevocationListEntry{SerialNumber: e.Serial.Int(), RevocationTime: at, ReasonCode: int(e.Reason)})
	}
	template := &x509.RevocationList{
		Number: number, ThisUpdate: crl.ThisUpdate, NextUpdate: crl.NextUpdate, RevokedCertificateEntries: entries,
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, i.Certificate, i.Signer)
	if err != nil {
		return CRL{}, err
	}
	crl.DER = der
	return crl, nil
}
