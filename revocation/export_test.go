package revocation

import (
	"context"
	"os"
	"time"
)

// Recall publishes what is on record, as Run does first.
func Recall(ctx context.Context, a *Authority) error {
	recorded, err := a.records.CRLs(ctx)
	if err == nil {
		a.publishAll(recorded)
	}
	return err
}

// EncodeEntries encodes entries of a CRL of a time.
func EncodeEntries(thisUpdate time.Time, entries []Entry) (der []byte, size int64) {
	e := newEntryEncoder(thisUpdate)
	for n := range entries {
		size += e.size(&entries[n])
		der = e.append(der, &entries[n])
	}
	return der, size
}

// SealShifted completes a CRL whose header was reserved an octet too long, as a shorter signature leaves it.
func SealShifted(path string, of Issuer, tbs []byte) (CRL, error) {
	scheme, err := schemeOf(of.Certificate.PublicKey)
	if err != nil {
		return CRL{}, err
	}
	h := scheme.hash.New()
	h.Write(tbs)
	s := &sheet{path: path, reserved: headerSize(int64(len(tbs)+128)) + 1, tbs: int64(len(tbs)), digest: h.Sum(nil)}
	if err := os.WriteFile(path, append(make([]byte, s.reserved), tbs...), 0o600); err != nil {
		return CRL{}, err
	}
	err = s.seal(&issuer{Issuer: of, scheme: scheme})
	return s.crl, err
}
