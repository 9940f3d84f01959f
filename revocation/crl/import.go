package crl

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

// Import records and publishes a CRL that was signed elsewhere, in DER. It must be current and complete, and signed by
// a CA whose CRLs are signed elsewhere. Its number must be higher than that of the recorded CRL. If it is the recorded
// CRL itself, Import publishes it again. The caller must limit the size of der.
func (u *Updater) Import(ctx context.Context, der []byte, by pki.Actor) (CRL, error) {
	list, err := Parse(der)
	if err != nil {
		return CRL{}, err
	}
	if len(list.Raw) != len(der) {
		return CRL{}, refuseCRL("import the CRL alone", "%d bytes follow the CRL", len(der)-len(list.Raw))
	}
	issuer, err := u.signerOf(list)
	if err != nil {
		return CRL{}, err
	}
	if err := CheckImport(list, u.now()); err != nil {
		return CRL{}, err
	}
	crl := Imported(pki.IssuerOf(issuer), list)
	u.importing.Lock()
	defer u.importing.Unlock()
	recorded, found, err := u.recorded(ctx, crl.Issuer)
	if err != nil {
		return CRL{}, err
	}
	if !found || !bytes.Equal(recorded.DER, der) {
		if err := u.store.PutCRLs(ctx, []CRL{crl}, by, u.now()); err != nil {
			return CRL{}, fmt.Errorf("record CRL %v of %s: %w", crl.Number, issuer.Subject, err)
		}
	}
	if _, err := u.published.recover(crl); err != nil {
		return CRL{}, fmt.Errorf("write CRL %v of %s: %w", crl.Number, issuer.Subject, err)
	}
	if err := u.publish([]CRL{crl}); err != nil {
		return CRL{}, fmt.Errorf("publish CRL %v of %s: %w", crl.Number, issuer.Subject, err)
	}
	return crl, nil
}

// Parse parses a CRL in DER. It returns a [pki.Refusal] if der is not a CRL of version 2.
func Parse(der []byte) (*x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err == nil {
		return list, nil
	}
	outer := cryptobyte.String(der)
	var tbs cryptobyte.String
	if outer.ReadASN1(&outer, cbasn1.SEQUENCE) && outer.ReadASN1(&tbs, cbasn1.SEQUENCE) && tbs.PeekASN1Tag(cbasn1.SEQUENCE) {
		// The TBSCertList starts with an INTEGER in version 2, and with the algorithm, a SEQUENCE, in version 1.
		return nil, refuseCRL("sign a CRL of version 2, which has a number (with openssl ca, set crlnumber)",
			"the CRL is of version 1 (RFC 5280 section 5.1.2.1)")
	}
	return nil, refuseCRL("import the DER form of a CRL", "the file is not a CRL: %v", err)
}

// Imported returns the record of a full CRL that was signed elsewhere.
func Imported(issuer pki.IssuerID, list *x509.RevocationList) CRL {
	return CRL{
		Issuer: issuer, Number: list.Number, ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate,
		SHA256: sha256.Sum256(list.Raw), Size: int64(len(list.Raw)), Entries: int64(len(list.RevokedCertificateEntries)),
		DER: bytes.Clone(list.Raw),
	}
}

// signerOf returns the CA that signed the list, if the CRLs of that CA are imported.
func (u *Updater) signerOf(list *x509.RevocationList) (*x509.Certificate, error) {
	for _, i := range u.issuers {
		if bytes.Equal(list.RawIssuer, i.Certificate.RawSubject) {
			return nil, refuseCRL("import only CRLs of CAs whose key is elsewhere", "the CRLs of %s are signed by this server", list.Issuer)
		}
	}
	known := false
	for _, c := range u.elsewhere {
		if !bytes.Equal(list.RawIssuer, c.RawSubject) {
			continue
		}
		if list.CheckSignatureFrom(c) == nil {
			return c, nil
		}
		known = true
	}
	if known {
		return nil, refuseCRL("sign the CRL with the CA's own key", "the signature does not verify with the key of %s", list.Issuer)
	}
	return nil, refuseCRL("import the CRL of a CA that this server knows", "this server knows no CA with the subject %s", list.Issuer)
}

// CheckImport returns a refusal of a list that relying parties could not use or would misinterpret. It does not check
// the signature.
func CheckImport(list *x509.RevocationList, now time.Time) error {
	if list.Number == nil || list.NextUpdate.IsZero() {
		return refuseCRL("sign a CRL with both", "the CRL has no number or no nextUpdate (RFC 5280 sections 5.1.2.5 and 5.2.3)")
	}
	if list.ThisUpdate.After(now) {
		return refuseCRL("compare the clocks of both machines", "the CRL's thisUpdate is in the future, at %s", list.ThisUpdate.Format(time.RFC3339))
	}
	if !list.NextUpdate.After(now) {
		return refuseCRL("sign a new CRL", "the CRL expired at %s", list.NextUpdate.Format(time.RFC3339))
	}
	for _, e := range list.Extensions {
		if e.Critical || e.Id.Equal(oidDeltaCRL) || e.Id.Equal(oidDistributionPoint) {
			return refuseCRL("sign a full CRL", "the CRL has the extension %v: it covers only a part", e.Id)
		}
	}
	return nil
}

func refuseCRL(hint, detail string, args ...any) error {
	return pki.Refuse(pki.RuleCRL, hint, detail, args...)
}

// recorded returns the recorded full CRL of an issuer.
func (u *Updater) recorded(ctx context.Context, id pki.IssuerID) (CRL, bool, error) {
	all, err := u.store.CRLs(ctx)
	if err != nil {
		return CRL{}, false, fmt.Errorf("read recorded CRLs: %w", err)
	}
	for _, c := range all {
		if c.Scope() == (Scope{Issuer: id}) {
			return c, true, nil
		}
	}
	return CRL{}, false, nil
}
