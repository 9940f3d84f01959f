package revocation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// Import records and publishes a CRL in DER that was signed elsewhere. It has to be a current, full CRL of one of
// the CAs whose CRLs are signed elsewhere, signed by that CA, and its number above the recorded one's. The CRL that
// is recorded already is published again, so that an import can be repeated. The caller bounds the size of der.
func (a *Authority) Import(ctx context.Context, der []byte, by pki.Actor) (CRL, error) {
	list, err := ParseCRL(der)
	if err != nil {
		return CRL{}, err
	}
	if len(list.Raw) != len(der) {
		return CRL{}, refuseCRL("import the CRL alone", "%d octets follow the CRL", len(der)-len(list.Raw))
	}
	issuer, err := a.signerOf(list)
	if err != nil {
		return CRL{}, err
	}
	if err := CheckImport(list, a.now()); err != nil {
		return CRL{}, err
	}
	crl := Imported(pki.IssuerOf(issuer), list)
	a.importing.Lock()
	defer a.importing.Unlock()
	recorded, found, err := a.recorded(ctx, crl.Issuer)
	if err != nil {
		return CRL{}, err
	}
	if !found || !bytes.Equal(recorded.DER, der) {
		if err := a.records.PutCRLs(ctx, []CRL{crl}, by, a.now()); err != nil {
			return CRL{}, fmt.Errorf("revocation: record CRL %v of %s: %w", crl.Number, issuer.Subject, err)
		}
	}
	if _, err := a.shelf.recover(crl); err != nil {
		return CRL{}, fmt.Errorf("revocation: write CRL %v of %s: %w", crl.Number, issuer.Subject, err)
	}
	if err := a.publish([]CRL{crl}); err != nil {
		return CRL{}, fmt.Errorf("revocation: publish CRL %v of %s: %w", crl.Number, issuer.Subject, err)
	}
	return crl, nil
}

// ParseCRL reads a CRL in DER. The error is the *pki.Refusal of what is no CRL, or one of version 1.
func ParseCRL(der []byte) (*x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err == nil {
		return list, nil
	}
	outer := cryptobyte.String(der)
	var tbs cryptobyte.String
	if outer.ReadASN1(&outer, cbasn1.SEQUENCE) && outer.ReadASN1(&tbs, cbasn1.SEQUENCE) && tbs.PeekASN1Tag(cbasn1.SEQUENCE) {
		// Only version 1 has no version field, which is an INTEGER, before the algorithm.
		return nil, refuseCRL("sign one of version 2, which has a number (with openssl ca, set crlnumber)",
			"the CRL is of version 1 (RFC 5280 section 5.1.2.1)")
	}
	return nil, refuseCRL("import the DER form of a CRL", "this is not a CRL: %v", err)
}

// Imported is the record of a full CRL that was signed elsewhere.
func Imported(issuer pki.IssuerID, list *x509.RevocationList) CRL {
	return CRL{
		Issuer: issuer, Number: list.Number, ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate,
		SHA256: sha256.Sum256(list.Raw), Size: int64(len(list.Raw)), Entries: int64(len(list.RevokedCertificateEntries)),
		DER: bytes.Clone(list.Raw),
	}
}

// signerOf finds the CA that signed the list among those whose CRLs are imported.
func (a *Authority) signerOf(list *x509.RevocationList) (*x509.Certificate, error) {
	for _, i := range a.issuers {
		if bytes.Equal(list.RawIssuer, i.Certificate.RawSubject) {
			return nil, refuseCRL("import only CRLs of CAs whose key is elsewhere", "the CRLs of %s are signed here", list.Issuer)
		}
	}
	known := false
	for _, c := range a.elsewhere {
		if !bytes.Equal(list.RawIssuer, c.RawSubject) {
			continue
		}
		if list.CheckSignatureFrom(c) == nil {
			return c, nil
		}
		known = true
	}
	if known {
		return nil, refuseCRL("have it signed with the CA's own key", "the signature is not that of %s", list.Issuer)
	}
	return nil, refuseCRL("import the CRL of a CA that this server knows", "no CA here is called %s", list.Issuer)
}

// CheckImport refuses lists that a relying party could not use, or would misread. The signature is not looked at.
func CheckImport(list *x509.RevocationList, now time.Time) error {
	if list.Number == nil || list.NextUpdate.IsZero() {
		return refuseCRL("sign one with both", "the CRL has no number or no nextUpdate (RFC 5280 section 5.1.2.5 and 5.2.3)")
	}
	if list.ThisUpdate.After(now) {
		return refuseCRL("set the clocks right", "the CRL is of %s, which is yet to come", list.ThisUpdate.Format(time.RFC3339))
	}
	if !list.NextUpdate.After(now) {
		return refuseCRL("have a new one signed", "the CRL went stale at %s", list.NextUpdate.Format(time.RFC3339))
	}
	for _, e := range list.Extensions {
		if e.Critical || e.Id.Equal(oidDeltaCRL) || e.Id.Equal(oidDistributionPoint) {
			return refuseCRL("sign a full CRL", "the CRL has the extension %v: it covers only a part", e.Id)
		}
	}
	return nil
}

func refuseCRL(fix, detail string, args ...any) error {
	return pki.Refuse(pki.RuleCRL, fix, detail, args...)
}

// recorded returns the newest recorded full CRL of an issuer.
func (a *Authority) recorded(ctx context.Context, id pki.IssuerID) (CRL, bool, error) {
	all, err := a.records.CRLs(ctx)
	if err != nil {
		return CRL{}, false, fmt.Errorf("revocation: read recorded CRLs: %w", err)
	}
	for _, c := range all {
		if c.Scope() == (Scope{Issuer: id}) {
			return c, true, nil
		}
	}
	return CRL{}, false, nil
}
