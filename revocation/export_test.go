package revocation

import (
	"context"
	"log/slog"
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

// HoldDirectory has each publishing to a directory call hold first, as a file system that does not respond holds its callers.
func HoldDirectory(a *Authority, path string, hold func()) {
	for _, d := range a.directories {
		if publish := d.publish; d.path == path {
			d.publish = func(ctx context.Context, crls []CRL, log *slog.Logger) ([]CRL, error) {
				hold()
				return publish(ctx, crls, log)
			}
		}
	}
}

// PutFull publishes and records a new CRL, and copies it to a directory.
func PutFull(a *Authority, path string) error {
	if err := a.PublishNow(context.Background()); err != nil {
		return err
	}
	for _, d := range a.directories {
		if d.path == path {
			_, err := d.publish(context.Background(), d.next(), a.log)
			return err
		}
	}
	return nil
}
